#pragma once
// The three ways of qlora-generate: one prompt, a conversation, a row at a time of a data set.
#include <memory>
#include <string>
#include <vector>

#include "tools/common/answers.h"

namespace qlora::tools {

struct NamedAdapter {
  std::string name;  // as given; "none" is the base
  Adapter adapter;
};

struct GenerateSession {
  const Options& options;
  Screen& screen;  // stderr: stdout belongs to the answers
  Base base;
  TextTools text;
  std::shared_ptr<const Model> model;
  std::vector<NamedAdapter> adapters;  // at least one
  AnswerOptions answers;

  const Tokenizer& tokenizer() const { return *text.tokenizer; }
};

// Category::usage for options that do not go together; before anything is opened.
void check_mode(const Options& options);

// The program: checks, opens, answers.
int generate(Options& options);

int generate_prompt(GenerateSession& s);   // --prompt
int generate_chat(GenerateSession& s);     // --chat
int generate_dataset(GenerateSession& s);  // --dataset

}  // namespace qlora::tools
