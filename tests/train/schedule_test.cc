#include "train/schedule.h"

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

#include "memory/error.h"

namespace qlora {
namespace {

using nlohmann::json;

std::string text_of(const json& v) { return v.is_string() ? v.get<std::string>() : v.dump(); }

// Every schedule of transformers.optimization. The same double operations in the same order, so the values
// are the same bits, save where the C library's cos or pow differ in the last place: the factor is at most 1
// with an absolute error of a few 2^-53, hence 1e-15 of the base rate.
TEST(Schedule, EqualsTransformers) {
  std::ifstream in(QLORA_GOLDEN "/train/schedules.json");
  const json cases = json::parse(in);
  ASSERT_EQ(cases.size(), 26u);
  for (const json& c : cases) {
    ScheduleOptions o;
    o.type = parse_schedule_type(c["name"].get<std::string>());
    o.learning_rate = c["base_lr"];
    o.total_steps = c["total_steps"];
    o.warmup_steps = c["warmup_steps"];
    for (const auto& [key, value] : c["args"].items()) o.kwargs[key] = text_of(value);
    const Schedule schedule(o);
    const std::vector<double> want = c["lr"];
    for (size_t i = 0; i < want.size(); ++i)
      EXPECT_NEAR(schedule.rate(static_cast<int64_t>(i)), want[i], 1e-15 * o.learning_rate)
          << c["name"] << c["args"] << " warm-up " << o.warmup_steps << " step " << i;
  }
}

TEST(Schedule, WarmupRatioRoundsUp) {
  EXPECT_EQ(warmup_steps_of(std::nullopt, 0.03, 100), 3);
  EXPECT_EQ(warmup_steps_of(std::nullopt, 0.03, 101), 4);
  EXPECT_EQ(warmup_steps_of(std::nullopt, 0.03, 1), 1);
  EXPECT_EQ(warmup_steps_of(std::nullopt, 0.0, 100), 0);
  EXPECT_EQ(warmup_steps_of(7, 0.03, 100), 7);
  EXPECT_EQ(warmup_steps_of(0, 0.03, 100), 0);
}

TEST(Schedule, PastTheEnd) {
  ScheduleOptions o;
  o.total_steps = 10;
  EXPECT_EQ(Schedule(o).rate(12), 0);
  o.type = ScheduleType::polynomial;
  EXPECT_DOUBLE_EQ(Schedule(o).rate(12), 1e-7);
  o.type = ScheduleType::cosine_with_restarts;
  EXPECT_EQ(Schedule(o).rate(10), 0);
}

TEST(Schedule, ShapesOfWarmupStableDecay) {
  ScheduleOptions o;
  o.type = ScheduleType::warmup_stable_decay;
  o.learning_rate = 1;
  o.total_steps = 12;
  o.warmup_steps = 4;
  o.kwargs = parse_schedule_kwargs("num_decay_steps=4,warmup_type=1-sqrt,decay_type=1-sqrt");
  const Schedule s(o);
  EXPECT_DOUBLE_EQ(s.rate(1), 1 - std::sqrt(0.75));
  EXPECT_DOUBLE_EQ(s.rate(6), 1);
  EXPECT_DOUBLE_EQ(s.rate(9), 1 - std::sqrt(0.25));
  EXPECT_DOUBLE_EQ(s.rate(12), 0);
  o.kwargs["warmup_type"] = "cosine";
  EXPECT_DOUBLE_EQ(Schedule(o).rate(2), 0.5);
}

int exit_code(ScheduleType type, const std::string& kwargs, double learning_rate = 2e-4) {
  try {
    ScheduleOptions o;
    o.learning_rate = learning_rate;
    o.type = type;
    o.total_steps = 10;
    o.kwargs = parse_schedule_kwargs(kwargs);
    Schedule schedule(o);
    return 0;
  } catch (const Error& e) {
    EXPECT_EQ(std::string(e.what()).find('\n'), std::string::npos);
    return e.exit_code();
  }
}

TEST(Schedule, ArgumentsThatAreWrong) {
  EXPECT_EQ(exit_code(ScheduleType::cosine, "num_cycles=1.5"), 0);
  EXPECT_EQ(exit_code(ScheduleType::cosine, "num_cyclse=1.5"), 2);
  EXPECT_EQ(exit_code(ScheduleType::cosine, "num_cycles=many"), 2);
  EXPECT_EQ(exit_code(ScheduleType::cosine, "num_cycles"), 2);
  EXPECT_EQ(exit_code(ScheduleType::cosine, "num_cycles=1,num_cycles=2"), 2);
  EXPECT_EQ(exit_code(ScheduleType::linear, "power=2"), 2);
  EXPECT_EQ(exit_code(ScheduleType::cosine_with_min_lr, ""), 2);
  EXPECT_EQ(exit_code(ScheduleType::cosine_with_min_lr, "min_lr=1e-5,min_lr_rate=0.1"), 2);
  EXPECT_EQ(exit_code(ScheduleType::warmup_stable_decay, ""), 2);
  EXPECT_EQ(exit_code(ScheduleType::warmup_stable_decay, "num_decay_steps=2.5"), 2);
  EXPECT_EQ(exit_code(ScheduleType::warmup_stable_decay, "num_decay_steps=2,decay_type=square"), 2);
  EXPECT_EQ(exit_code(ScheduleType::cosine_with_min_lr, "min_lr=1e-5", 0), 2) << "a share of nothing";
  EXPECT_EQ(exit_code(ScheduleType::polynomial, "lr_end=0.1"), 2);
  EXPECT_EQ(exit_code(ScheduleType::inverse_sqrt, "timescale=0"), 2);
  EXPECT_THROW(parse_schedule_type("cosine_annealing"), Error);
}

}  // namespace
}  // namespace qlora
