#include "train/data/encode.h"

#include <algorithm>

#include "memory/error.h"

namespace qlora {
namespace {

const Json& need(const Json& row, const Columns& columns, const char* role, const std::string& where) {
  const Json* value = columns.find(row, role);
  if (value == nullptr)
    fail(Category::input, where, ": has no '", columns.of(role), "'; add it, or name the key with --columns ",
         role, "=KEY");
  return *value;
}

const std::string& need_string(const Json& row, const Columns& columns, const char* role,
                               const std::string& where) {
  const Json& value = need(row, columns, role, where);
  if (!value.is_string())
    fail(Category::input, where, ": '", columns.of(role), "' is ", shown(value), "; it must be a string");
  return value.get_ref<const std::string&>();
}

void check_messages(const Json& messages, const std::string& key, const std::string& where) {
  if (!messages.is_array() || messages.empty())
    fail(Category::input, where, ": '", key, "' is ", shown(messages), "; it must be a list of messages");
  for (size_t i = 0; i < messages.size(); ++i) {
    const Json& m = messages[i];
    if (!m.is_object() || !m.contains("role") || !m["role"].is_string())
      fail(Category::input, where, ": '", key, "'[", i, "] is ", shown(m),
           "; a message has a role and a content");
  }
}

// A conversation as JSON, and how many of its messages are only context (the prompt of prompt-completion).
struct ChatRow {
  Json value = Json::object();
  size_t context = 0;
  Json& messages() { return value["messages"]; }
};

void carry_extras(const Json& row, const Columns& columns, Json& conversation) {
  for (const char* role : {"tools", "documents", "chat_template_kwargs"})
    if (const Json* extra = columns.find(row, role)) conversation[role] = *extra;
}

ChatRow from_messages(const Json& row, const Columns& columns, const std::string& where) {
  ChatRow c;
  const Json& messages = need(row, columns, "messages", where);
  check_messages(messages, columns.of("messages"), where);
  c.messages() = messages;
  carry_extras(row, columns, c.value);
  return c;
}

ChatRow from_sharegpt(const Json& row, const Columns& columns, const std::string& where) {
  ChatRow c;
  const Json& turns = need(row, columns, "conversations", where);
  const std::string key = columns.of("conversations");
  if (!turns.is_array() || turns.empty())
    fail(Category::input, where, ": '", key, "' is ", shown(turns), "; it must be a list of turns");
  c.messages() = Json::array();
  for (size_t i = 0; i < turns.size(); ++i) {
    const Json& turn = turns[i];
    if (!turn.is_object() || !turn.contains("from") || !turn["from"].is_string() || !turn.contains("value"))
      fail(Category::input, where, ": '", key, "'[", i, "] is ", shown(turn),
           "; a turn has a from and a value");
    std::string role = turn["from"];
    if (role == "human") role = "user";
    if (role == "gpt" || role == "chatgpt" || role == "bard" || role == "bing" || role == "model")
      role = "assistant";
    c.messages().push_back({{"role", role}, {"content", turn["value"]}});
  }
  carry_extras(row, columns, c.value);
  return c;
}

ChatRow from_alpaca(const Json& row, const Columns& columns, const std::string& where) {
  ChatRow c;
  std::string user = need_string(row, columns, "instruction", where);
  c.messages() = Json::array();
  if (columns.find(row, "system") != nullptr && !need_string(row, columns, "system", where).empty())
    c.messages().push_back({{"role", "system"}, {"content", need_string(row, columns, "system", where)}});
  if (columns.find(row, "input") != nullptr && !need_string(row, columns, "input", where).empty())
    user += "\n" + need_string(row, columns, "input", where);
  c.messages().push_back({{"role", "user"}, {"content", user}});
  c.messages().push_back({{"role", "assistant"}, {"content", need_string(row, columns, "output", where)}});
  return c;
}

ChatRow from_lists(const Json& row, const Columns& columns, const std::string& where) {
  ChatRow c;
  const Json& prompt = need(row, columns, "prompt", where);
  const Json& completion = need(row, columns, "completion", where);
  check_messages(prompt, columns.of("prompt"), where);
  check_messages(completion, columns.of("completion"), where);
  c.messages() = prompt;
  c.context = prompt.size();
  for (const Json& m : completion) c.messages().push_back(m);
  carry_extras(row, columns, c.value);
  return c;
}

bool is_conversation(const Json& row, DatasetFormat format, const Columns& columns,
                     const std::string& where) {
  switch (format) {
    case DatasetFormat::messages:
    case DatasetFormat::sharegpt:
    case DatasetFormat::alpaca:
      return true;
    case DatasetFormat::prompt_completion:
      return need(row, columns, "prompt", where).is_array();
    default:
      return false;
  }
}

ChatRow conversation_of(const Json& row, DatasetFormat format, const Columns& columns,
                        const std::string& where) {
  if (format == DatasetFormat::messages) return from_messages(row, columns, where);
  if (format == DatasetFormat::sharegpt) return from_sharegpt(row, columns, where);
  if (format == DatasetFormat::alpaca) return from_alpaca(row, columns, where);
  return from_lists(row, columns, where);
}

// The encoder's errors with file and line in front.
template <class F>
auto placed(const std::string& where, F&& f) {
  try {
    return f();
  } catch (const Error& e) {
    throw Error(e.category(), where + ": " + e.what());
  }
}

// Answers inside the prompt are context: what the prompt alone shares with the whole is masked.
void mask_context(const ChatRow& c, const RowEncoder& encoder, const std::string& where, EncodedRow& row) {
  Json prompt = c.value;
  prompt["messages"].erase(prompt["messages"].begin() + static_cast<int64_t>(c.context),
                           prompt["messages"].end());
  const Conversation chat = Conversation::from_json(prompt, where);
  const std::vector<int32_t> ids = placed(where, [&] { return encoder.encode_question(chat); });
  for (size_t t = 0; t < std::min(ids.size(), row.ids.size()) && ids[t] == row.ids[t]; ++t)
    row.has_loss[t] = 0;
}

EncodedRow encode_conversation(const ChatRow& c, const RowEncoder& encoder, const std::string& where) {
  const Conversation chat = Conversation::from_json(c.value, where);
  EncodedChat encoded = placed(where, [&] { return encoder.encode_chat(chat); });
  check(encoded.ids.size() == encoded.loss.size(), "a chat of ", encoded.ids.size(), " ids and ",
        encoded.loss.size(), " masks");
  EncodedRow out{std::move(encoded.ids), std::move(encoded.loss)};
  if (c.context > 0 && encoder.loss_on() != LossOn::all) mask_context(c, encoder, where, out);
  return out;
}

void append_eos(EncodedRow& row, const RowEncoder& encoder, const std::string& where) {
  const auto eos = encoder.eos();
  if (!eos)
    fail(Category::input, where,
         ": the tokenizer names no end-of-text token to close the row; use messages or tokens");
  if (row.ids.empty() || row.ids.back() != *eos) {
    row.ids.push_back(*eos);
    row.has_loss.push_back(0);
  }
  row.has_loss.back() = 1;
}

EncodedRow encode_joined(const std::string& prompt, const std::string& completion, const RowEncoder& encoder,
                         const std::string& where) {
  const auto spans = placed(where, [&] { return encoder.encode(prompt + completion); });
  EncodedRow out;
  for (const TokenSpan& s : spans) {
    out.ids.push_back(s.id);
    out.has_loss.push_back(encoder.loss_on() == LossOn::all || (s.end > s.begin && s.end > prompt.size()));
  }
  append_eos(out, encoder, where);
  return out;
}

EncodedRow encode_tokens(const Json& row, const Columns& columns, const RowEncoder& encoder,
                         const std::string& where) {
  const Json& ids = need(row, columns, "input_ids", where);
  const Json* labels = columns.find(row, "labels");
  const std::string key = columns.of("input_ids");
  if (!ids.is_array() || ids.empty())
    fail(Category::input, where, ": '", key, "' is ", shown(ids), "; it must be a list of token ids");
  if (labels != nullptr && (!labels->is_array() || labels->size() != ids.size()))
    fail(Category::input, where, ": '", columns.of("labels"), "' must be a list as long as '", key, "' (",
         ids.size(), ")");
  EncodedRow out;
  for (size_t t = 0; t < ids.size(); ++t) {
    const Json& id = ids[t];
    if (!id.is_number_unsigned() || id.get<uint64_t>() >= static_cast<uint64_t>(encoder.vocab()))
      fail(Category::input, where, ": '", key, "'[", t, "] is ", shown(id), "; the vocabulary has ids 0 to ",
           encoder.vocab() - 1);
    const auto value = static_cast<int32_t>(id.get<uint64_t>());
    bool label = true;
    if (labels != nullptr) {
      const Json& l = (*labels)[t];
      label = l != -100;
      if (!l.is_number_integer() || (label && l != id))
        fail(Category::input, where, ": '", columns.of("labels"), "'[", t, "] is ", shown(l),
             "; a label is its own token (", value, ") or -100");
    }
    out.ids.push_back(value);
    out.has_loss.push_back(label);
  }
  return out;
}

EncodedRow encode_text(const std::string& text, const RowEncoder& encoder, const std::string& where) {
  EncodedRow out;
  for (const TokenSpan& s : placed(where, [&] { return encoder.encode(text); })) out.ids.push_back(s.id);
  out.has_loss.assign(out.ids.size(), 1);
  append_eos(out, encoder, where);
  out.may_continue = true;
  return out;
}

}  // namespace

EncodedRow encode_row(const Json& row, DatasetFormat format, const Columns& columns,
                      const RowEncoder& encoder, const std::string& where) {
  check(format != DatasetFormat::automatic, "a row of no format");
  EncodedRow out;
  if (is_conversation(row, format, columns, where)) {
    out = encode_conversation(conversation_of(row, format, columns, where), encoder, where);
  } else if (format == DatasetFormat::prompt_completion) {
    out = encode_joined(need_string(row, columns, "prompt", where),
                        need_string(row, columns, "completion", where), encoder, where);
  } else if (format == DatasetFormat::text) {
    out = encode_text(need_string(row, columns, "text", where), encoder, where);
  } else {
    out = encode_tokens(row, columns, encoder, where);
  }
  if (!out.has_loss.empty()) out.has_loss[0] = 0;
  return out;
}

Question question_of(const Json& row, DatasetFormat format, const Columns& columns, const RowEncoder& encoder,
                     const std::string& where) {
  Question q;
  if (is_conversation(row, format, columns, where)) {
    ChatRow c = conversation_of(row, format, columns, where);
    Json& messages = c.messages();
    const Json answer = messages.back();
    if (answer["role"] != "assistant" || !answer.contains("content") || !answer["content"].is_string() ||
        messages.size() < 2)
      fail(Category::input, where,
           ": its last message is no answer of the assistant; there is nothing to compare with");
    messages.erase(messages.size() - 1);
    q.wanted = answer["content"];
    q.prompt =
        placed(where, [&] { return encoder.encode_question(Conversation::from_json(c.value, where)); });
  } else if (format == DatasetFormat::prompt_completion) {
    const std::string& prompt = need_string(row, columns, "prompt", where);
    q.wanted = need_string(row, columns, "completion", where);
    for (const TokenSpan& s : placed(where, [&] { return encoder.encode(prompt); })) q.prompt.push_back(s.id);
    // A post-processor's EOS would end the prompt before its answer.
    if (encoder.eos() && !q.prompt.empty() && q.prompt.back() == *encoder.eos()) q.prompt.pop_back();
  } else {
    fail(Category::input, where, ": rows of ", name_of(format),
         " hold no question; use messages or prompt-completion");
  }
  if (q.prompt.empty()) fail(Category::input, where, ": its prompt has no tokens; write one");
  return q;
}

}  // namespace qlora
