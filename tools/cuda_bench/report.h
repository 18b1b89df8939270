#pragma once
#include <fstream>
#include <string>

namespace qlora::bench {

// A figure, and what it is held against.
struct Record {
  std::string part, what;
  double seconds = 0;     // of one call
  double rate = 0;        // in `unit`
  std::string unit;       // "TFLOP/s"
  double roof = 0;        // in the same unit, measured in turns with it; 0: none
  std::string roof_name;  // "cuBLASLt 8192"
  std::string note = {};
};

// What a run says: a line a figure on stdout, and the same as a JSON object a line in a file, each there at
// once, so that a run that is cut loses what it had not measured yet.
class Report {
 public:
  // `path`: empty for none. Category::io when it cannot be written.
  explicit Report(const std::string& path);
  void add(const Record& r);
  // A line for people alone.
  void say(const std::string& line);

 private:
  std::string path_;
  std::ofstream json_;
};

}  // namespace qlora::bench
