#include "model/text/chat.h"

#include <algorithm>

#include "memory/error.h"

namespace qlora {
namespace {

bool is_answer(const Json& message) {
  const auto role = message.find("role");
  return role != message.end() && role->is_string() && *role == "assistant";
}

std::vector<int> answers(const Conversation& chat, bool last_only) {
  std::vector<int> out;
  for (size_t i = 0; i < chat.messages.size(); ++i)
    if (is_answer(chat.messages[i])) out.push_back(static_cast<int>(i));
  if (last_only && out.size() > 1) out.erase(out.begin(), out.end() - 1);
  return out;
}

size_t common_prefix(const std::string& a, const std::string& b) {
  const size_t n = std::min(a.size(), b.size());
  size_t i = 0;
  while (i < n && a[i] == b[i]) ++i;
  while (i > 0 && i < b.size() && (b[i] & 0xC0) == 0x80) --i;  // not inside a character
  return i;
}

// Finds the answers of one rendered conversation.
class AnswerFinder {
 public:
  AnswerFinder(const ChatEncoder& encoder, const Conversation& chat, const Rendered& text,
               const std::vector<TokenSpan>& tokens, const Tokenizer& tokenizer)
      : encoder_(encoder), chat_(chat), text_(text), tokens_(tokens), tokenizer_(tokenizer) {}

  // `from`: where the answer before it ended.
  ByteRange find(int message, size_t from) const {
    const size_t begin = begin_of(message, from);
    const auto [bound, exact] = bound_of(message, begin);
    size_t content_end = begin;
    for (const ContentRange& r : text_.content)
      if (r.message == message && r.begin >= begin && r.begin < bound)
        content_end = std::max(content_end, r.end);
    return {begin, end_of(content_end, bound, exact)};
  }

 private:
  // The text of the first `count` messages; nothing where the template refuses them.
  std::optional<std::string> render_first(int count, bool prompt) const {
    Conversation part = chat_;
    part.messages.erase(part.messages.begin() + count, part.messages.end());
    try {
      return encoder_.render(part, prompt).text;
    } catch (const TemplateError&) {
      return std::nullopt;
    }
  }

  size_t first_content(int message, size_t from) const {
    for (const ContentRange& r : text_.content)
      if (r.message == message && r.begin >= from) return r.begin;
    return std::string::npos;
  }

  size_t begin_of(int message, size_t from) const {
    const std::optional<std::string> before = render_first(message, true);
    const size_t content = first_content(message, from);
    if (before) {
      const size_t shared = common_prefix(*before, text_.text);
      if (shared == before->size() && shared >= from) return std::min(shared, content);
      // A prompt that the finished answer lacks, such as an opened <think>: as far as both agree. Not for the
      // first message: a template may put a default system turn before it.
      const std::optional<std::string> bare = message > 0 ? render_first(message, false) : std::nullopt;
      if (bare && text_.text.starts_with(*bare) && shared >= std::max(bare->size(), from))
        return std::min(shared, content);
    }
    if (content == std::string::npos)
      fail(Category::input, "message ", message, ": the chat template ", encoder_.template_name(chat_),
           " does not show where this empty answer begins; leave the message out, or use a template with "
           "{% generation %}");
    return content;
  }

  // Where what belongs to the message ends at the latest, and whether that is known to be its end.
  std::pair<size_t, bool> bound_of(int message, size_t begin) const {
    if (message + 1 == static_cast<int>(chat_.messages.size())) return {text_.text.size(), true};
    const std::optional<std::string> upto = render_first(message + 1, false);
    if (upto && upto->size() >= begin && text_.text.starts_with(*upto)) return {upto->size(), true};
    size_t bound = text_.text.size();
    for (const ContentRange& r : text_.content)
      if (r.message > message && r.begin >= begin) bound = std::min(bound, r.begin);
    return {bound, false};
  }

  // With the first special token behind the content and, where the bound is exact, those that follow at once.
  // A template that ends turns in plain text: with that text, but not the white space after it.
  size_t end_of(size_t content_end, size_t bound, bool exact) const {
    size_t end = std::string::npos;
    for (const TokenSpan& t : tokens_) {
      if (t.begin < content_end || t.end > bound) continue;
      const bool special = tokenizer_.is_special(t.id);
      if (end != std::string::npos && (!special || !exact)) break;
      if (special) end = t.end;
    }
    if (end != std::string::npos) return end;
    if (!exact) return content_end;
    end = bound;
    while (end > content_end && std::string_view(" \t\r\n").find(text_.text[end - 1]) != std::string::npos)
      --end;
    return end;
  }

  const ChatEncoder& encoder_;
  const Conversation& chat_;
  const Rendered& text_;
  const std::vector<TokenSpan>& tokens_;
  const Tokenizer& tokenizer_;
};

// The blocks that come after everything said before the last answer.
std::vector<ByteRange> last_blocks(const Conversation& chat, const Rendered& text) {
  const std::vector<int> last = answers(chat, true);
  if (last.empty()) return {};
  size_t before = 0;
  for (const ContentRange& r : text.content)
    if (r.message >= 0 && r.message < last[0]) before = std::max(before, r.end);
  std::vector<ByteRange> out;
  for (const ByteRange& r : text.generation)
    if (r.begin >= before) out.push_back(r);
  return out;
}

}  // namespace

ChatEncoder::ChatEncoder(const Tokenizer& tokenizer, ChatTemplates templates, ChatOptions options)
    : tokenizer_(tokenizer), templates_(std::move(templates)), options_(std::move(options)) {
  templates_.pick(false);
}

const std::string& ChatEncoder::template_name(const Conversation& chat) const {
  return templates_.pick(!chat.tools.is_null()).name();
}

Rendered ChatEncoder::render(const Conversation& chat, bool add_generation_prompt) const {
  RenderOptions how;
  how.add_generation_prompt = add_generation_prompt;
  how.specials = tokenizer_.named_specials();
  how.now = options_.now;
  return templates_.pick(!chat.tools.is_null()).render(chat, how);
}

std::vector<TokenSpan> ChatEncoder::tokens(const Rendered& text) const {
  std::vector<ByteRange> literal;
  if (options_.content_as_text)
    for (const ContentRange& r : text.content) {
      // Ranges may overlap (a message printed inside another's); the tokenizer wants them ascending and
      // apart.
      const size_t begin = literal.empty() ? r.begin : std::max(r.begin, literal.back().end);
      if (begin < r.end) literal.push_back({begin, r.end});
    }
  return tokenizer_.encode_spans(text.text, false, literal);
}

std::vector<ByteRange> ChatEncoder::learned(const Conversation& chat, const Rendered& text,
                                            const std::vector<TokenSpan>& tokens) const {
  const bool last = options_.loss_on == LossOn::last;
  if (options_.loss_on == LossOn::all) return {{tokens.empty() ? 0 : tokens[0].end, text.text.size()}};
  if (templates_.pick(!chat.tools.is_null()).has_generation())
    return last ? last_blocks(chat, text) : text.generation;
  const AnswerFinder finder(*this, chat, text, tokens, tokenizer_);
  std::vector<ByteRange> out;
  size_t from = 0;
  for (const int message : answers(chat, last)) {
    const ByteRange range = finder.find(message, from);
    if (range.begin < from)
      fail(Category::input, "message ", message, ": the chat template ", template_name(chat),
           " does not keep the answers in order; use a template with {% generation %}");
    out.push_back(range);
    from = range.end;
  }
  return out;
}

std::vector<ByteRange> ChatEncoder::learned(const Conversation& chat) const {
  const Rendered text = render(chat, false);
  return learned(chat, text, tokens(text));
}

EncodedChat ChatEncoder::encode(const Conversation& chat) const {
  const Rendered text = render(chat, false);
  const std::vector<TokenSpan> spans = tokens(text);
  const std::vector<ByteRange> ranges = learned(chat, text, spans);
  EncodedChat out;
  out.ids.reserve(spans.size());
  out.loss.reserve(spans.size());
  for (const TokenSpan& t : spans) {
    out.ids.push_back(t.id);
    out.loss.push_back(std::any_of(ranges.begin(), ranges.end(),
                                   [&](const ByteRange& r) { return t.begin < r.end && t.end > r.begin; }));
  }
  const auto last = std::find(out.loss.rbegin(), out.loss.rend(), 1);
  if (options_.drop_tail && last != out.loss.rend()) {
    out.loss.erase(last.base(), out.loss.end());
    out.ids.resize(out.loss.size());
  }
  return out;
}

std::vector<int32_t> ChatEncoder::encode_prompt(const Conversation& chat) const {
  std::vector<int32_t> out;
  for (const TokenSpan& t : tokens(render(chat, true))) out.push_back(t.id);
  return out;
}

std::optional<int32_t> ChatEncoder::end_of_turn() const {
  Conversation chat;
  chat.messages = {{{"role", "user"}, {"content", "a"}}, {{"role", "assistant"}, {"content", "b"}}};
  Rendered text;
  try {
    text = render(chat, false);
  } catch (const TemplateError&) {
    return std::nullopt;  // a template for another kind of conversation
  }
  size_t end = std::string::npos;
  for (const ContentRange& r : text.content)
    if (r.message == 1) end = r.end;
  for (const TokenSpan& t : tokens(text))
    if (t.begin >= end && tokenizer_.is_special(t.id)) return t.id;
  return std::nullopt;
}

}  // namespace qlora
