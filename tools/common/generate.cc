#include "memory/cuda/start.h"
#include "tools/common/generate_modes.h"
#include "tools/common/threads.h"

namespace qlora::tools {

void check_mode(const Options& options) {
  const bool prompt = options.given("prompt"), chat = options.get<bool>("chat"),
             dataset = options.given("dataset");
  if (prompt + chat + dataset != 1)
    fail(Category::usage, prompt + chat + dataset == 0 ? "nothing to answer" : "too much to answer",
         "; give one of --prompt TEXT, --chat and --dataset DATA");
  const auto refuse = [&](const char* option, const char* why) {
    if (options.given(option)) fail(Category::usage, options.origin(option), " ", why);
  };
  if (!dataset) {
    refuse("output", "is for the completions of --dataset; redirect stdout instead");
    for (const char* option : {"columns", "dataset-format"}) refuse(option, "is for --dataset; leave it out");
  }
  if (dataset) refuse("system", "is for --prompt and --chat; the rows of --dataset bring their own");
  if (options.get<bool>("raw")) {
    refuse("system", "needs the chat template, which --raw leaves out; drop one of them");
    refuse("chat-template", "and --raw contradict each other; drop one of them");
    if (chat) fail(Category::usage, "--chat needs the chat template, which --raw leaves out; drop --raw");
    if (dataset)
      fail(Category::usage,
           "--raw is for --prompt; rows of prompt-completion strings go without a template anyway");
  }
  if (chat && options.get<bool>("json"))
    fail(Category::usage, "--json is one result and --chat a conversation; use --prompt, or --dataset");
}

int generate(Options& options) {
  check_mode(options);
  require_device(options);
  Screen screen({2, options.get<bool>("quiet"), options.get<bool>("verbose")});
  warn_of_unused_variables(options, screen);
  Base base = open_base(options);
  const int threads = thread_count(options);
  BaseLoading loading(base, threads, {});
  TextTools text = open_text(base.source.path, options.find<std::string>("chat-template"));
  AnswerOptions answers = answer_options(options, base, text, screen);

  std::vector<NamedAdapter> adapters;
  for (const std::string& name : options.get<std::vector<std::string>>("adapter"))
    adapters.push_back({name, open_adapter(name, base.checkpoint->desc())});
  if (adapters.empty()) adapters.push_back({"none", {}});

  std::shared_ptr<const Model> model = loading.model();
  answers.device = run_device(options, *model, threads);
  if (cuda::runtime_version() != 0) screen.detail("device   " + device_text(answers.device.device));
  GenerateSession session{options,           screen,           std::move(base),
                          std::move(text),   std::move(model), std::move(adapters),
                          std::move(answers)};
  if (options.get<bool>("chat")) return generate_chat(session);
  return options.given("prompt") ? generate_prompt(session) : generate_dataset(session);
}

}  // namespace qlora::tools
