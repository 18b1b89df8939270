#include "train/eval_score.h"

#include <gtest/gtest.h>

namespace qlora {
namespace {

TEST(AnswerScores, CountsWhatThePeerCounts) {
  AnswerScores s;
  s.add(R"({"city": "Aiea", "zip": "96701"})", R"({"city": "Aiea", "zip": "96701"})");
  s.add(" {\"city\": \"Aiea\"}\n", R"({"city": "Aiea"})");  // stripped before it is compared
  s.add(R"({"zip": "1", "city": "B", "x": 2})", R"({"city": "B", "zip": "2", "unit": 3})");  // one of three
  s.add("I do not know", R"({"city": "C"})");
  EXPECT_EQ(s.rows(), 4);
  EXPECT_EQ(s.exact(), 2);
  EXPECT_DOUBLE_EQ(s.exact_match(), 0.5);
  EXPECT_DOUBLE_EQ(s.valid_json(), 0.75);
  EXPECT_DOUBLE_EQ(*s.fields_right(), 4.0 / 7);
  EXPECT_EQ(s.to_json().dump(), R"({"exact_match":0.5,"fields_right":0.5714285714285714,"valid_json":0.75})");
}

double fields(const char* answer, const char* wanted) {
  AnswerScores s;
  s.add(answer, wanted);
  return *s.fields_right();
}

TEST(AnswerScores, ValuesCompareAsJson) {
  EXPECT_EQ(fields(R"({"a": 72.0})", R"({"a": 72})"), 1);
  EXPECT_EQ(fields(R"({"a": "72"})", R"({"a": 72})"), 0);
  EXPECT_EQ(fields(R"({"a": {"y": 2, "x": [1, null]}})", R"({"a": {"x": [1, null], "y": 2}})"), 1);
  EXPECT_EQ(fields(R"({"a": [2, 1]})", R"({"a": [1, 2]})"), 0);
  EXPECT_EQ(fields(R"({"a": null})", R"({"a": null, "b": 1})"), 0.5);
  EXPECT_EQ(fields(R"({"b": 1})", R"({"a": null})"), 0);
  EXPECT_EQ(fields("{\"a\": \"\\u00e9\"}", "{\"a\": \"\xc3\xa9\"}"), 1);
}

TEST(AnswerScores, WhatIsNoJson) {
  AnswerScores s;
  for (const char* answer : {"", "[1]", "7", "{\"a\": 1} and more", "{\"a\": 1", "{\"a\": \"\xff\"}"})
    s.add(answer, "yes");
  s.add("{\"a\":" + std::string(100000, '[') + std::string(100000, ']') + "}", "yes");
  EXPECT_EQ(s.valid_json(), 0);
  EXPECT_EQ(s.exact_match(), 0);
  EXPECT_FALSE(s.fields_right().has_value());
  EXPECT_TRUE(s.to_json()["fields_right"].is_null());
  EXPECT_EQ(AnswerScores().exact_match(), 0);
}

}  // namespace
}  // namespace qlora
