#include "model/text/unicode.h"

#include <gtest/gtest.h>

namespace qlora {
namespace {

TEST(Unicode, Utf8) {
  EXPECT_EQ(unicode::lossy("a\xF0\x9F\x98z\xFF\xC0\xAF\xED\xA0\x80"),
            "a\uFFFDz\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD");
  EXPECT_EQ(unicode::first_invalid("héllo"), std::string::npos);
  EXPECT_EQ(unicode::first_invalid("h\xC3"), 1u);
  for (size_t at = 0; at < 20; ++at) {  // eight plain characters are passed over at a time
    std::string text(20, 'a');
    text[at] = '\xFF';
    EXPECT_EQ(unicode::first_invalid(text), at);
  }
  EXPECT_EQ(unicode::complete_prefix("a\xF0\x9F\x98"), 1u);
  EXPECT_EQ(unicode::complete_prefix("a\xF0\x9F\x98\x80"), 5u);
  EXPECT_EQ(unicode::complete_prefix("a\x98"), 2u);
  EXPECT_EQ(unicode::count("né👩"), 3u);
}

TEST(Unicode, Cases) {
  EXPECT_EQ(unicode::upper("straße éω"), "STRASSE ÉΩ");
  EXPECT_EQ(unicode::lower("ÀÉ Ω İ"), "àé ω i̇");
  EXPECT_EQ(unicode::title(U'ǆ'), "ǅ");
}

}  // namespace
}  // namespace qlora
