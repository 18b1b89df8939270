#pragma once
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace qlora {

// transformers' SchedulerType, by its names.
enum class ScheduleType : uint8_t {
  linear,
  cosine,
  constant,
  constant_with_warmup,
  cosine_with_restarts,
  polynomial,
  inverse_sqrt,
  cosine_with_min_lr,
  warmup_stable_decay,
};

struct ScheduleOptions {
  ScheduleType type = ScheduleType::linear;
  double learning_rate = 2e-4;
  int64_t total_steps = 0;   // optimizer steps of the whole run
  int64_t warmup_steps = 0;  // of them; warmup_steps_of() makes it from a ratio
  // transformers' keyword arguments of the type (num_cycles, power, lr_end, timescale, min_lr, min_lr_rate,
  // num_decay_steps, num_stable_steps, warmup_type, decay_type, min_lr_ratio).
  std::map<std::string, std::string> kwargs;
};

// "cosine" and so on. Category::usage, naming
// every type, when there is none of that name.
ScheduleType parse_schedule_type(std::string_view name);
std::string_view name_of(ScheduleType type);
std::vector<std::string_view> schedule_names();

// "key=value,key=value", as --lr-scheduler-kwargs takes it; empty text is no arguments. Category::usage.
std::map<std::string, std::string> parse_schedule_kwargs(std::string_view text);

// Steps of warm-up: `steps` where given, else the ratio of `total_steps` rounded up, as transformers does.
int64_t warmup_steps_of(std::optional<int64_t> steps, double ratio, int64_t total_steps);

// The learning rate of each optimizer step, in the same double arithmetic as transformers.optimization over
// torch's LambdaLR: base rate times a factor of the step's number.
class Schedule {
 public:
  // Category::usage for an argument that the type has not, that is missing without a default, or that makes
  // no sense (a lr_end above the rate).
  explicit Schedule(const ScheduleOptions& options);
  // The rate that step `step` uses; the first step is 0.
  double rate(int64_t step) const { return base_ * factor(step); }

 private:
  double factor(int64_t step) const;
  double cosine_factor(int64_t step, double cycles) const;
  double stable_factor(int64_t step) const;

  enum class Shape : uint8_t { linear, cosine, sqrt1 };
  static Shape parse_shape(const std::string& key, const std::string& value);

  ScheduleType type_;
  double base_;
  int64_t total_, warmup_;
  double num_cycles_ = 0.5, power_ = 1, lr_end_ = 1e-7, min_rate_ = 0;
  int64_t timescale_ = 0, stable_steps_ = 0, decay_steps_ = 0;
  Shape warmup_shape_ = Shape::linear, decay_shape_ = Shape::cosine;
};

}  // namespace qlora
