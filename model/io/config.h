#pragma once
#include <initializer_list>
#include <set>
#include <string>

#include "model/desc.h"
#include "model/io/json.h"

namespace qlora {

// Reads the keys of a config.json with type and range, and remembers which were asked for, so that a key that
// nobody understands is an error and not a guess. All errors are Category::input and name file and key.
class ConfigReader {
 public:
  // `config` and `where` outlive the reader.
  ConfigReader(const Json& config, const std::string& where);
  // An absent or null key gives the fallback.
  int64_t integer(const char* key, int64_t fallback, int64_t low, int64_t high);
  double number(const char* key, double fallback);
  bool boolean(const char* key, bool fallback);
  std::string string(const char* key, const std::string& fallback);
  const Json* value(const char* key);  // nullptr: absent or null
  // A key that the engine can only take as `wanted`: anything else is refused.
  void only(const char* key, const Json& wanted);
  // "WHERE: KEY is VALUE: WHY; REMEDY"
  [[noreturn]] void refuse(const char* key, const std::string& why, const std::string& remedy) const;
  // Keys that say nothing about the mathematics here.
  void ignore(std::initializer_list<const char*> keys);
  // Refuses the first key that was never asked for, is not null and not in the list of harmless ones that
  // every family shares.
  void finish();
  const std::string& where() const { return where_; }

 private:
  const Json& config_;
  const std::string& where_;
  std::set<std::string> known_;
};

// rope_theta + rope_scaling (before transformers 5), or rope_parameters.
RopeDesc read_rope(ConfigReader& config, double default_theta);

// bos, pad and eos of config.json, which may give a list; ids below 0 count as absent.
void read_token_ids(ConfigReader& config, ModelDesc& desc);
// Adds the eos ids of generation_config.json (empty path or absent file: none).
void add_generation_ids(const std::string& path, ModelDesc& desc);

}  // namespace qlora
