#include "tools/common/plan_rates.h"

#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <filesystem>
#include <fstream>

#include "kernels/common/isa.h"
#include "memory/file.h"
#include "model/io/json.h"
#include "tools/common/model_path.h"
#include "train/op_rates.h"

namespace qlora::tools {
namespace fs = std::filesystem;
namespace {

std::string processor() {
  std::ifstream in("/proc/cpuinfo");
  for (std::string line; std::getline(in, line);)
    if (line.rfind("model name", 0) == 0) return line.substr(line.find(':') + 2);
  return "?";
}

// The cache, an object; empty where there is none to read.
Json cached(const fs::path& file) {
  std::error_code absent;
  if (!fs::is_regular_file(file, absent)) return Json::object();
  const Json all = Json::parse(read_file(file.string(), size_t{1} << 16), nullptr, false);
  return all.is_object() ? all : Json::object();
}

std::optional<OpRates> rates_in(const Json& all, const std::string& key) {
  const auto rate = [&](const char* name) {
    if (!all.contains(key) || !all[key].is_object() || !all[key].contains(name)) return 0.0;
    const Json& value = all[key][name];
    return value.is_number() ? value.get<double>() : 0.0;
  };
  const OpRates r{rate("product"), rate("attention"), rate("bandwidth")};
  if (!(r.product > 0 && r.attention > 0 && r.bandwidth > 0)) return std::nullopt;
  return r;
}

}  // namespace

double disk_rate(const Options& options) {
  std::error_code failed;
  fs::path at = fs::absolute(options.find<std::string>("output-dir").value_or("."), failed);
  while (!at.empty() && at != at.root_path() && !fs::is_directory(at, failed)) at = at.parent_path();
  struct stat info = {};
  if (stat(at.c_str(), &info) != 0) return 0;
  const std::string key = cat("disk ", major(info.st_dev), ":", minor(info.st_dev));
  const fs::path folder = user_cache() / "qlora", file = folder / "op_rates.json";
  try {
    Json all = cached(file);
    const auto known = all.find(key);
    if (known != all.end() && known->is_number() && known->get<double>() > 0) return known->get<double>();
    const double rate = measure_disk_rate(at.string());
    all[key] = rate;
    if (folder.is_absolute()) {
      fs::create_directories(folder, failed);
      write_file(file.string(), all.dump(1) + "\n");
    }
    return rate;
  } catch (const Error&) {
    return 0;  // a folder that cannot be written to, a full disk: a figure less
  }
}

OpRates op_rates(int threads) {
  const std::string key = cat(processor(), ", ", name_of(active_isa()), ", ", threads, " threads");
  const fs::path folder = user_cache() / "qlora", file = folder / "op_rates.json";
  // A cache that cannot be read or written costs a measurement, no more.
  std::optional<OpRates> r;
  try {
    Json all = cached(file);
    r = rates_in(all, key);
    if (r) return *r;
    r = measure_op_rates(threads);
    std::error_code failed;
    if (folder.is_absolute()) fs::create_directories(folder, failed);
    all[key] = {{"product", r->product}, {"attention", r->attention}, {"bandwidth", r->bandwidth}};
    if (folder.is_absolute() && !failed) write_file(file.string(), all.dump(1) + "\n");
  } catch (const Error&) {
  }
  return r ? *r : measure_op_rates(threads);
}

}  // namespace qlora::tools
