// qlora-generate: completes a prompt, talks, or answers the rows of a data set.
#include "kernels/common/isa.h"
#include "tools/common/generate_modes.h"
#include "tools/common/main.h"
#include "tools/common/tables.h"
#include "tools/common/threads.h"

using namespace qlora;
using namespace qlora::tools;

namespace {

int body(Options& options) {
  check_mode(options);
  Screen screen({2, options.get<bool>("quiet"), options.get<bool>("verbose")});
  Base base = open_base(options);
  TextTools text = open_text(base.source.path, options.find<std::string>("chat-template"));
  AnswerOptions answers = answer_options(options, base, text, screen);
  answers.threads = thread_count(options);

  std::vector<NamedAdapter> adapters;
  for (const std::string& name : options.get<std::vector<std::string>>("adapter"))
    adapters.push_back({name, open_adapter(name, base.checkpoint->desc())});
  if (adapters.empty()) adapters.push_back({"none", {}});

  std::shared_ptr<const Model> model = load_base(base, answers.threads);
  GenerateSession session{options,           screen,           std::move(base),
                          std::move(text),   std::move(model), std::move(adapters),
                          std::move(answers)};
  if (options.get<bool>("chat")) return generate_chat(session);
  return options.given("prompt") ? generate_prompt(session) : generate_dataset(session);
}

}  // namespace

int main(int argc, char** argv) {
  return run_tool(argc, argv, generate_table(), {[] { return std::string(name_of(active_isa())); }, ""},
                  body);
}
