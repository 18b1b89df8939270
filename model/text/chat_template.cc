#include "model/text/chat_template.h"

#include <algorithm>

#include "memory/error.h"
#include "model/text/jinja_interpreter.h"

namespace qlora {
namespace {

using jinja::Mark;
using jinja::Value;

// Null keys go; the reasoning, whatever it is called, is there as reasoning_content and as thinking.
Json prepared(const Json& message) {
  if (!message.is_object()) return message;
  Json out = Json::object();
  for (const auto& [key, value] : message.items())
    if (!value.is_null()) out[key] = value;
  for (const char* key : {"reasoning_content", "thinking", "reasoning"}) {
    if (!out.contains(key)) continue;
    const Json reasoning = out[key];
    out["reasoning_content"] = reasoning;
    if (!out.contains("thinking")) out["thinking"] = reasoning;
    break;
  }
  return out;
}

// Roles are data, but no part of what the message says.
Value message_value(const Json& json, int32_t index) {
  const Json message = prepared(json);
  if (!message.is_object()) return Value::from_json(message, index);
  jinja::Dict d;
  for (const auto& [key, value] : message.items())
    d.items.emplace_back(Value::str(key), Value::from_json(value, key == "role" ? Mark::kData : index));
  return Value::dict(std::move(d));
}

Value messages_value(const Json& messages) {
  std::vector<Value> out;
  for (size_t i = 0; i < messages.size(); ++i)
    out.push_back(message_value(messages[i], static_cast<int32_t>(i)));
  return Value::list(std::move(out));
}

void sort_marks(const jinja::Str& text, Rendered& out) {
  for (const Mark& m : text.marks) {
    if (m.origin == Mark::kGeneration)
      out.generation.push_back({m.begin, m.end});
    else if (m.begin < m.end)
      out.content.push_back({m.begin, m.end, m.origin});
  }
  const auto by_begin = [](const auto& a, const auto& b) { return a.begin < b.begin; };
  std::stable_sort(out.generation.begin(), out.generation.end(), by_begin);
  std::stable_sort(out.content.begin(), out.content.end(), by_begin);
}

}  // namespace

Conversation Conversation::from_json(const Json& json, const std::string& where) {
  Conversation out;
  if (json.is_array()) {
    out.messages = json;
  } else if (json.is_object() && json.contains("messages")) {
    out.messages = json["messages"];
    for (const auto& [key, to] : {std::pair{"tools", &out.tools}, std::pair{"documents", &out.documents},
                                  std::pair{"chat_template_kwargs", &out.kwargs}})
      if (json.contains(key)) *to = json[key];
  } else {
    fail(Category::input, where, ": neither a list of messages nor an object with \"messages\"");
  }
  if (!out.messages.is_array()) fail(Category::input, where, ": \"messages\" is not a list");
  for (size_t i = 0; i < out.messages.size(); ++i)
    if (!out.messages[i].is_object()) fail(Category::input, where, ": message ", i, " is not an object");
  if (!out.kwargs.is_null() && !out.kwargs.is_object())
    fail(Category::input, where, ": \"chat_template_kwargs\" is not an object");
  return out;
}

ChatTemplate ChatTemplate::parse(std::string_view source, const std::string& name) {
  ChatTemplate out;
  out.source_ = source;
  out.syntax_ = std::make_shared<const jinja::Syntax>(jinja::parse(source, name));
  return out;
}

Rendered ChatTemplate::render(const Conversation& chat, const RenderOptions& options) const {
  jinja::Str text;
  try {
    jinja::Interpreter interpreter(*syntax_, options.now);
    for (const auto& [name, token] : options.specials) interpreter.define(name, Value::str(token));
    interpreter.define("messages", messages_value(chat.messages));
    interpreter.define("tools", Value::from_json(chat.tools, Mark::kData));
    interpreter.define("documents", Value::from_json(chat.documents, Mark::kData));
    interpreter.define("add_generation_prompt", Value::boolean(options.add_generation_prompt));
    if (chat.kwargs.is_object())
      for (const auto& [name, value] : chat.kwargs.items())
        interpreter.define(name, Value::from_json(value, Mark::kData));
    text = interpreter.run();
  } catch (const std::length_error& e) {
    fail(Category::input, name(), ": the conversation: ", e.what());
  }
  Rendered out;
  sort_marks(text, out);
  out.text = std::move(text.text);
  return out;
}

}  // namespace qlora
