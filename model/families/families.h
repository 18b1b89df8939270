#pragma once
#include <string>
#include <vector>

#include "model/desc.h"
#include "model/io/gguf.h"
#include "model/io/json.h"

namespace qlora {

// What a family of models is to a reader: how its files are described and named. A family is a value of
// ModelDesc everywhere else; only model/families/ knows its name.
struct Family {
  const char* model_type;  // config.json's
  // Category::input on anything that the engine would compute wrongly.
  ModelDesc (*describe)(const Json& config, const std::string& where);

  const char* gguf_architecture;  // general.architecture; null: GGUF files of the family are not supported
  // The metadata as a config.json in the spelling that transformers 4 and 5 both read, without rope scaling
  // that lies in a tensor. Category::input as above.
  Json (*gguf_config)(const GgufFile& file);
  // A GGUF's name of a Hugging Face module ("model.layers.0.mlp.up_proj" -> "blk.0.ffn_up").
  std::string (*gguf_module)(const std::string& module);
  bool gguf_permutes_qk;  // rows of Q and K are stored as (head, half_dim, 2)
};

// Category::input naming `where`, the family and the supported ones.
const Family& family_of_config(const Json& config, const std::string& where);
const Family& family_of_gguf(const GgufFile& file);

extern const Family kLlamaFamily;
extern const Family kQwen3Family;

}  // namespace qlora
