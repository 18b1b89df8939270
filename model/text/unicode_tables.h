#pragma once
#include <cstddef>
#include <cstdint>

// Written by tools/dev/unicode_tables.py, which says where each table comes from. All are sorted.
namespace qlora::unicode {

struct CodeRange {
  uint32_t first, last;
};
// first, first + stride, … last map to themselves + delta.
struct CaseRun {
  uint32_t first, last;
  uint32_t stride;
  int32_t delta;
};
// A mapping to two or three code points, ended by 0.
struct CaseSpecial {
  uint32_t code, to[3];
};

extern const CodeRange letters[], numbers[], digits[], spaces[], words[], python_spaces[], unprintables[];
extern const size_t letters_count, numbers_count, digits_count, spaces_count, words_count,
    python_spaces_count, unprintables_count;
extern const CaseRun lower_runs[], upper_runs[], title_runs[];
extern const size_t lower_runs_count, upper_runs_count, title_runs_count;
extern const CaseSpecial lower_specials[], upper_specials[], title_specials[];
extern const size_t lower_specials_count, upper_specials_count, title_specials_count;

}  // namespace qlora::unicode
