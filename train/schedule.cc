#include "train/schedule.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <numbers>

#include "memory/error.h"

namespace qlora {
namespace {

constexpr std::array<std::string_view, 9> kNames = {
    "linear",     "cosine",       "constant",           "constant_with_warmup", "cosine_with_restarts",
    "polynomial", "inverse_sqrt", "cosine_with_min_lr", "warmup_stable_decay"};

// The keyword arguments in force, taken out one by one: what is left over is unknown.
class Kwargs {
 public:
  Kwargs(const ScheduleOptions& o) : type_(name_of(o.type)), left_(o.kwargs) {}

  std::optional<std::string> take(const std::string& key) {
    known_.push_back(key);
    auto node = left_.extract(key);
    if (!node) return std::nullopt;
    return node.mapped();
  }
  std::optional<double> number(const std::string& key) {
    const auto text = take(key);
    if (!text) return std::nullopt;
    double value = 0;
    const auto [end, ec] = std::from_chars(text->data(), text->data() + text->size(), value);
    if (ec != std::errc() || end != text->data() + text->size() || !std::isfinite(value))
      fail(Category::usage, "--lr-scheduler-kwargs ", key, "=", *text, ": not a number");
    return value;
  }
  std::optional<int64_t> integer(const std::string& key, int64_t least) {
    const auto value = number(key);
    if (!value) return std::nullopt;
    if (*value != std::floor(*value) || *value < static_cast<double>(least) || *value > 1e15)
      fail(Category::usage, "--lr-scheduler-kwargs ", key, "=", *value, ": must be a whole number, at least ",
           least);
    return static_cast<int64_t>(*value);
  }
  void done() const {
    if (left_.empty()) return;
    std::string names;
    for (const std::string& key : known_) names += (names.empty() ? "" : ", ") + key;
    fail(Category::usage, "--lr-scheduler-kwargs: ", type_, " has no argument '", left_.begin()->first,
         "'; it takes ", names.empty() ? "none" : names);
  }

 private:
  std::string_view type_;
  std::map<std::string, std::string> left_;
  std::vector<std::string> known_;
};

double real(int64_t i) { return static_cast<double>(i); }

}  // namespace

ScheduleType parse_schedule_type(std::string_view name) {
  const auto it = std::find(kNames.begin(), kNames.end(), name);
  if (it != kNames.end()) return static_cast<ScheduleType>(it - kNames.begin());
  std::string all;
  for (std::string_view n : kNames) all += (all.empty() ? "" : ", ") + std::string(n);
  fail(Category::usage, "--lr-scheduler-type ", name, ": no such schedule; choose one of ", all);
}

std::string_view name_of(ScheduleType type) { return kNames[static_cast<size_t>(type)]; }

std::vector<std::string_view> schedule_names() { return {kNames.begin(), kNames.end()}; }

std::map<std::string, std::string> parse_schedule_kwargs(std::string_view text) {
  std::map<std::string, std::string> out;
  while (!text.empty()) {
    const size_t comma = std::min(text.find(','), text.size());
    const std::string_view pair = text.substr(0, comma);
    text.remove_prefix(std::min(comma + 1, text.size()));
    const size_t equals = pair.find('=');
    if (equals == std::string_view::npos || equals == 0 || equals + 1 == pair.size())
      fail(Category::usage, "--lr-scheduler-kwargs: '", pair,
           "' is not key=value; write key=value,key=value");
    if (!out.emplace(pair.substr(0, equals), pair.substr(equals + 1)).second)
      fail(Category::usage, "--lr-scheduler-kwargs: '", pair.substr(0, equals), "' is given twice; keep one");
  }
  return out;
}

int64_t warmup_steps_of(std::optional<int64_t> steps, double ratio, int64_t total_steps) {
  if (steps) {
    if (*steps < 0) fail(Category::usage, "--warmup-steps ", *steps, ": must be 0 or more");
    return *steps;
  }
  if (!(ratio >= 0 && ratio <= 1)) fail(Category::usage, "--warmup-ratio ", ratio, ": must lie in [0, 1]");
  return static_cast<int64_t>(std::ceil(real(total_steps) * ratio));
}

Schedule::Shape Schedule::parse_shape(const std::string& key, const std::string& value) {
  if (value == "linear") return Shape::linear;
  if (value == "cosine") return Shape::cosine;
  if (value == "1-sqrt") return Shape::sqrt1;
  fail(Category::usage, "--lr-scheduler-kwargs ", key, "=", value, ": choose linear, cosine or 1-sqrt");
}

Schedule::Schedule(const ScheduleOptions& o)
    : type_(o.type), base_(o.learning_rate), total_(o.total_steps), warmup_(o.warmup_steps) {
  Kwargs args(o);
  switch (type_) {
    case ScheduleType::linear:
    case ScheduleType::constant:
    case ScheduleType::constant_with_warmup:
      break;
    case ScheduleType::cosine:
      num_cycles_ = args.number("num_cycles").value_or(0.5);
      break;
    case ScheduleType::cosine_with_restarts:
      num_cycles_ = real(args.integer("num_cycles", 1).value_or(1));
      break;
    case ScheduleType::polynomial:
      power_ = args.number("power").value_or(1.0);
      lr_end_ = args.number("lr_end").value_or(1e-7);
      if (!(base_ > lr_end_))
        fail(Category::usage, "--lr-scheduler-kwargs lr_end=", lr_end_, ": must be below --learning-rate ",
             base_);
      break;
    case ScheduleType::inverse_sqrt:
      timescale_ = args.integer("timescale", 1).value_or(warmup_ > 0 ? warmup_ : 10000);
      break;
    case ScheduleType::cosine_with_min_lr: {
      num_cycles_ = args.number("num_cycles").value_or(0.5);
      const auto min_lr = args.number("min_lr"), min_lr_rate = args.number("min_lr_rate");
      if (min_lr.has_value() == min_lr_rate.has_value())
        fail(Category::usage,
             "--lr-scheduler-type cosine_with_min_lr: needs either min_lr or min_lr_rate; add ",
             "--lr-scheduler-kwargs min_lr_rate=0.1");
      if (min_lr && !(base_ > 0))
        fail(Category::usage, "--lr-scheduler-kwargs min_lr=", *min_lr,
             ": is a share of --learning-rate, which is 0; give one above 0");
      min_rate_ = min_lr ? *min_lr / base_ : *min_lr_rate;
      break;
    }
    case ScheduleType::warmup_stable_decay: {
      const auto decay = args.integer("num_decay_steps", 0);
      if (!decay)
        fail(Category::usage, "--lr-scheduler-type warmup_stable_decay: num_decay_steps has no default; add ",
             "--lr-scheduler-kwargs num_decay_steps=N");
      decay_steps_ = *decay;
      stable_steps_ = args.integer("num_stable_steps", 0).value_or(total_ - warmup_ - decay_steps_);
      min_rate_ = args.number("min_lr_ratio").value_or(0);
      num_cycles_ = args.number("num_cycles").value_or(0.5);
      warmup_shape_ = parse_shape("warmup_type", args.take("warmup_type").value_or("linear"));
      decay_shape_ = parse_shape("decay_type", args.take("decay_type").value_or("cosine"));
      break;
    }
  }
  args.done();
}

// Progress after warm-up through `cycles` cosine waves.
double Schedule::cosine_factor(int64_t step, double cycles) const {
  const double progress = real(step - warmup_) / real(std::max<int64_t>(1, total_ - warmup_));
  return 0.5 * (1.0 + std::cos(std::numbers::pi * cycles * 2.0 * progress));
}

double Schedule::stable_factor(int64_t step) const {
  double f = 0;
  if (step < warmup_) {
    const double p = real(step) / real(std::max<int64_t>(1, warmup_));
    if (warmup_shape_ == Shape::linear) f = p;
    if (warmup_shape_ == Shape::cosine) f = 0.5 * (1.0 - std::cos(std::numbers::pi * p));
    if (warmup_shape_ == Shape::sqrt1) f = 1.0 - std::sqrt(1.0 - p);
  } else if (step < warmup_ + stable_steps_) {
    return 1.0;
  } else if (step < warmup_ + stable_steps_ + decay_steps_) {
    const double p = real(step - warmup_ - stable_steps_) / real(std::max<int64_t>(1, decay_steps_));
    if (decay_shape_ == Shape::linear) f = 1.0 - p;
    if (decay_shape_ == Shape::cosine) f = 0.5 * (1.0 + std::cos(std::numbers::pi * num_cycles_ * 2.0 * p));
    if (decay_shape_ == Shape::sqrt1) f = 1.0 - std::sqrt(p);
  } else {
    return min_rate_;
  }
  return std::max(0.0, f * (1.0 - min_rate_) + min_rate_);
}

double Schedule::factor(int64_t step) const {
  if (type_ == ScheduleType::constant) return 1.0;
  if (type_ == ScheduleType::warmup_stable_decay) return stable_factor(step);
  if (step < warmup_) return real(step) / real(std::max<int64_t>(1, warmup_));
  switch (type_) {
    case ScheduleType::linear:
      return std::max(0.0, real(total_ - step) / real(std::max<int64_t>(1, total_ - warmup_)));
    case ScheduleType::cosine:
      return std::max(0.0, cosine_factor(step, num_cycles_));
    case ScheduleType::cosine_with_restarts: {
      const double progress = real(step - warmup_) / real(std::max<int64_t>(1, total_ - warmup_));
      if (progress >= 1.0) return 0.0;
      const double in_cycle = std::fmod(num_cycles_ * progress, 1.0);
      return std::max(0.0, 0.5 * (1.0 + std::cos(std::numbers::pi * in_cycle)));
    }
    case ScheduleType::polynomial: {
      if (step > total_) return lr_end_ / base_;
      const double left = 1 - real(step - warmup_) / real(std::max<int64_t>(1, total_ - warmup_));
      return ((base_ - lr_end_) * std::pow(left, power_) + lr_end_) / base_;
    }
    case ScheduleType::inverse_sqrt:
      return 1.0 / std::sqrt(real(step + timescale_ - warmup_) / real(timescale_));
    case ScheduleType::cosine_with_min_lr:
      return std::max(0.0, cosine_factor(step, num_cycles_) * (1 - min_rate_) + min_rate_);
    default:
      return 1.0;
  }
}

}  // namespace qlora
