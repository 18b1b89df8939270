#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

// UTF-8 and the few character properties that tokenizers and templates need. Which version of Unicode each
// one follows is said in tools/dev/unicode_tables.py: they are those of the reference, which mixes several.
namespace qlora::unicode {

// Decodes the code point at text[at] and moves `at` past it. At bytes that are no UTF-8 it yields U+FFFD and
// moves past the longest prefix of a sequence (at least a byte), as Python and Rust do when they replace. at
// < text.size() is required.
char32_t next(std::string_view text, size_t& at, bool* valid = nullptr);
void append(std::string& out, char32_t code);
// The offset of the first byte that is no UTF-8 (surrogates and overlong forms are none), or npos.
size_t first_invalid(std::string_view text);
// Everything that is no UTF-8 replaced by U+FFFD.
std::string lossy(std::string_view text);
// The length of the longest prefix that ends between characters; a tail that could still become one is left
// out.
size_t complete_prefix(std::string_view text);
size_t count(std::string_view text);  // code points

bool is_letter(char32_t code);        // \p{L} of ByteLevel's regex
bool is_number(char32_t code);        // \p{N} of ByteLevel's regex
bool is_digit(char32_t code);         // what the Digits step splits at
bool is_space(char32_t code);         // \s of the regexes, and of lstrip and rstrip of added tokens
bool is_word(char32_t code);          // \w, for single_word
bool is_python_space(char32_t code);  // str.isspace: \s and U+001C-001F
bool is_printable(char32_t code);     // str.isprintable: what repr does not escape

std::string lower(std::string_view text);  // str.lower but for the final sigma
std::string upper(std::string_view text);
std::string title(char32_t code);  // one character, titlecased

}  // namespace qlora::unicode
