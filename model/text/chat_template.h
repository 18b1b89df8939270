#pragma once
#include <ctime>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "model/io/json.h"
#include "model/text/added_tokens.h"
#include "model/text/jinja_syntax.h"

// Chat templates as transformers 5 renders them: a Jinja subset (jinja_syntax.h) and what stands around it.
namespace qlora {

using jinja::TemplateError;

// What a template renders. Absent (null) tools and documents are defined as None for the template; empty
// lists stay lists.
struct Conversation {
  Json messages;   // a list of objects
  Json tools;      // a list, or null
  Json documents;  // a list, or null
  Json kwargs;     // chat_template_kwargs: an object of further variables, or null

  // A row or --chat file: a list of messages, or an object with messages, tools, documents,
  // chat_template_kwargs. Category::input, opening with `where`, for anything else.
  static Conversation from_json(const Json& json, const std::string& where);
};

struct RenderOptions {
  bool add_generation_prompt = false;
  // bos_token, eos_token, …: Tokenizer::named_specials(). A template that names one that is not here sees it
  // undefined.
  std::map<std::string, std::string> specials;
  std::optional<std::tm> now;  // what strftime_now sees; the local time without it
};

// Bytes of the rendered text that came from the conversation and not from the template.
struct ContentRange {
  size_t begin, end;
  int message;  // index into messages; -1 for roles, tools, documents and kwargs
};

struct Rendered {
  std::string text;
  std::vector<ByteRange> generation;  // of {% generation %} blocks, ascending, as bytes
  std::vector<ContentRange> content;  // ascending by begin
};

class ChatTemplate {
 public:
  // TemplateError (Category::input) "NAME: line N: …" for what cannot be parsed or is not supported.
  static ChatTemplate parse(std::string_view source, const std::string& name);
  // TemplateError also where the template raises (raised() is true then) or goes beyond its bounds.
  Rendered render(const Conversation& chat, const RenderOptions& options) const;
  bool has_generation() const { return syntax_->has_generation; }
  const std::string& name() const { return syntax_->name; }
  const std::string& source() const { return source_; }

 private:
  std::shared_ptr<const jinja::Syntax> syntax_;
  std::string source_;
};

// The templates that come with a model; `default` is the one without a name.
struct ChatTemplates {
  std::map<std::string, ChatTemplate> named;

  bool empty() const { return named.empty(); }
  // tool_use where tools are given and it exists, else default. Category::input when neither is there.
  const ChatTemplate& pick(bool tools) const;
};

// Of a Hugging Face folder: chat_template.jinja beats the key in tokenizer_config.json (a template or a list
// of {name, template}); chat_templates/NAME.jinja and additional_chat_templates/NAME.jinja add to either.
// Empty when there is none.
ChatTemplates load_chat_templates(const std::string& folder);
// --chat-template: a file, or one of builtin_chat_templates(). Category::usage when it is neither.
ChatTemplate find_chat_template(const std::string& file_or_name);
std::vector<std::string> builtin_chat_templates();

}  // namespace qlora
