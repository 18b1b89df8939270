#include "tools/cuda_bench/report.h"

#include <cmath>
#include <cstdio>

#include "memory/error.h"
#include "model/io/json.h"

namespace qlora::bench {

Report::Report(const std::string& path) : path_(path) {
  if (path.empty()) return;
  json_.open(path, std::ios::app);
  if (!json_) fail(Category::io, path, ": cannot be written; give another --json");
}

void Report::add(const Record& r) {
  check(std::isfinite(r.rate) && r.rate > 0, r.part, ", ", r.what, ": ", r.rate, " ", r.unit);
  std::string line(160, ' ');
  line.resize(static_cast<size_t>(std::snprintf(line.data(), line.size(), "%-9s %-44.60s %11.4f ms %9.4g %s",
                                                r.part.c_str(), r.what.c_str(), 1e3 * r.seconds, r.rate,
                                                r.unit.c_str())));
  if (r.roof > 0) {
    char share[96];
    std::snprintf(share, sizeof share, "%7.1f %% of %.4g, %.40s", 100 * r.rate / r.roof, r.roof,
                  r.roof_name.c_str());
    line += share;
  }
  say(r.note.empty() ? line : line + "  " + r.note);
  if (!json_.is_open()) return;
  Json o = {{"part", r.part}, {"what", r.what}, {"seconds", r.seconds}, {"rate", r.rate}, {"unit", r.unit}};
  if (r.roof > 0) {
    o["roof"] = r.roof;
    o["roof_name"] = r.roof_name;
    o["share"] = r.rate / r.roof;
  }
  if (!r.note.empty()) o["note"] = r.note;
  json_ << o.dump() << std::endl;
  if (!json_) fail(Category::io, path_, ": writing failed; check the space left where it goes");
}

void Report::say(const std::string& line) {
  std::puts(line.c_str());
  std::fflush(stdout);
}

}  // namespace qlora::bench
