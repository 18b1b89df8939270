#include "memory/sha256.h"

#include <gtest/gtest.h>

#include "memory/file.h"
#include "tests/support/temp_folder.h"

using namespace qlora;

namespace {

std::string hex_of(std::string_view text, Sha256::Body body) {
  Sha256 hash(body);
  hash.update(text);
  return hash.hex();
}

class Sha256Body : public testing::TestWithParam<Sha256::Body> {};

// FIPS 180-4's examples.
TEST_P(Sha256Body, Examples) {
  EXPECT_EQ(hex_of("", GetParam()), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(hex_of("abc", GetParam()), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(hex_of(std::string(1000000, 'a'), GetParam()),
            "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

// Every length from 0 to 300, so every way that a block can end: hashlib's digest of all the digests in a
// row.
TEST_P(Sha256Body, EveryLength) {
  std::string data, all;
  for (int i = 0; i < 300; ++i) data += static_cast<char>(i * i + 3 * i);
  for (size_t n = 0; n <= data.size(); ++n) all += hex_of(std::string_view(data).substr(0, n), GetParam());
  EXPECT_EQ(hex_of(all, GetParam()), "e2853ea5d83020a82a8a5c05c22af210809020d660888509776e1f105fbd0d2a");
}

TEST_P(Sha256Body, PiecesAreTheWhole) {
  const std::string text(1000, 'q');
  for (size_t cut = 0; cut <= 200; ++cut) {
    Sha256 hash(GetParam());
    hash.update(text.substr(0, cut));
    hash.update(text.substr(cut));
    EXPECT_EQ(hash.hex(), hex_of(text, GetParam())) << cut;
  }
}

// On a CPU without the instructions both are the portable body.
INSTANTIATE_TEST_SUITE_P(, Sha256Body, testing::Values(Sha256::Body::fastest, Sha256::Body::portable),
                         [](const auto& body) {
                           return body.param == Sha256::Body::fastest ? "fastest" : "portable";
                         });

TEST(Sha256, OfAFile) {
  const test::TempFolder folder;
  const std::string text(5'000'001, 'q');  // more than one of the pieces that a file is read in
  write_file(folder / "a", text);
  EXPECT_EQ(sha256_file(folder / "a"), sha256_hex(text));
}

}  // namespace
