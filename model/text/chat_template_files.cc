#include <algorithm>
#include <filesystem>

#include "memory/error.h"
#include "memory/file.h"
#include "model/text/chat_template.h"

// Where templates come from.
namespace qlora {
namespace {

namespace fs = std::filesystem;

constexpr size_t kLargestTemplate = size_t{4} << 20, kLargestConfig = size_t{256} << 20;

struct Builtin {
  const char* name;
  const char* source;
};

// ChatML as most models that use it have it. Alpaca in Stanford's words: the prompt ends in "### Response:"
// and the answer follows at once; a user message may carry `instruction` and `input` of its own, else all of
// it is the instruction.
constexpr Builtin kBuiltins[] = {
    {"chatml",
     "{%- for message in messages %}\n"
     "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}\n"
     "{%- endfor %}\n"
     "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}\n"},
    {"alpaca",
     "{{- bos_token if bos_token is defined else '' }}\n"
     "{%- for message in messages %}\n"
     "{%- if message['role'] == 'system' %}\n"
     "{{- message['content'] + '\\n\\n' }}\n"
     "{%- elif message['role'] == 'user' %}\n"
     "{%- set instruction = message['instruction'] if message['instruction'] is defined else "
     "message['content'] %}\n"
     "{%- if message['input'] %}\n"
     "{%- if messages[0]['role'] != 'system' %}\n"
     "{{- 'Below is an instruction that describes a task, paired with an input that provides further "
     "context. "
     "Write a response that appropriately completes the request.\\n\\n' }}\n"
     "{%- endif %}\n"
     "{{- '### Instruction:\\n' + instruction + '\\n\\n### Input:\\n' + message['input'] + '\\n\\n### "
     "Response:' }}\n"
     "{%- else %}\n"
     "{%- if messages[0]['role'] != 'system' %}\n"
     "{{- 'Below is an instruction that describes a task. "
     "Write a response that appropriately completes the request.\\n\\n' }}\n"
     "{%- endif %}\n"
     "{{- '### Instruction:\\n' + instruction + '\\n\\n### Response:' }}\n"
     "{%- endif %}\n"
     "{%- elif message['role'] == 'assistant' %}\n"
     "{{- message['content'] + eos_token }}{{- '' if loop.last else '\\n\\n' }}\n"
     "{%- else %}\n"
     "{{- raise_exception('The alpaca template knows the roles system, user and assistant only') }}\n"
     "{%- endif %}\n"
     "{%- endfor %}\n"},
    {"llama3",
     "{{- bos_token }}\n"
     "{%- for message in messages %}\n"
     "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + "
     "'<|eot_id|>' }}\n"
     "{%- endfor %}\n"
     "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif "
     "%}\n"},
};

void add(ChatTemplates& to, const std::string& name, const std::string& source, const std::string& where) {
  to.named.insert_or_assign(name, ChatTemplate::parse(source, where));
}

void add_from_config(ChatTemplates& to, const std::string& path) {
  const Json config = parse_json(read_file(path, kLargestConfig), path);
  if (!config.is_object() || !config.contains("chat_template")) return;
  const Json& value = config["chat_template"];
  const std::string where = path + ": chat_template";
  if (value.is_string()) return add(to, "default", value.get<std::string>(), where);
  if (value.is_null()) return;
  if (!value.is_array())
    fail(Category::input, where, " is neither a template nor a list; the file is damaged");
  for (const Json& entry : value) {
    const bool whole = entry.is_object() && entry.contains("name") && entry["name"].is_string() &&
                       entry.contains("template") && entry["template"].is_string();
    if (!whole) fail(Category::input, where, ": an entry is not {name, template}; the file is damaged");
    const auto name = entry["name"].get<std::string>();
    add(to, name, entry["template"].get<std::string>(), where + " '" + name + "'");
  }
}

}  // namespace

ChatTemplates load_chat_templates(const std::string& folder) {
  ChatTemplates out;
  const fs::path root(folder);
  if (fs::exists(root / "tokenizer_config.json"))
    add_from_config(out, (root / "tokenizer_config.json").string());
  if (const fs::path own = root / "chat_template.jinja"; fs::exists(own))
    add(out, "default", read_file(own.string(), kLargestTemplate), own.string());
  for (const char* name : {"chat_templates", "additional_chat_templates"}) {
    if (!fs::is_directory(root / name)) continue;
    std::vector<fs::path> files;
    for (const auto& entry : fs::directory_iterator(root / name))
      if (entry.path().extension() == ".jinja") files.push_back(entry.path());
    std::sort(files.begin(), files.end());
    for (const fs::path& file : files)
      add(out, file.stem().string(), read_file(file.string(), kLargestTemplate), file.string());
  }
  return out;
}

const ChatTemplate& ChatTemplates::pick(bool tools) const {
  if (const auto found = named.find("tool_use"); tools && found != named.end()) return found->second;
  if (const auto found = named.find("default"); found != named.end()) return found->second;
  fail(Category::input, "the model has no chat template; give one with --chat-template FILE or NAME");
}

ChatTemplate find_chat_template(const std::string& file_or_name) {
  if (fs::exists(file_or_name))
    return ChatTemplate::parse(read_file(file_or_name, kLargestTemplate), file_or_name);
  for (const Builtin& b : kBuiltins)
    if (file_or_name == b.name) return ChatTemplate::parse(b.source, file_or_name);
  std::string names;
  for (const std::string& name : builtin_chat_templates()) names += (names.empty() ? "" : ", ") + name;
  fail(Category::usage, "--chat-template ", file_or_name, ": neither a file nor one of ", names);
}

std::vector<std::string> builtin_chat_templates() {
  std::vector<std::string> out;
  for (const Builtin& b : kBuiltins) out.push_back(b.name);
  return out;
}

}  // namespace qlora
