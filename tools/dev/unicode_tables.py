"""Writes model/text/unicode_classes.cc, the character classes of the reference tokenizer, and unicode_python.cc, what
Python says of characters (str methods of the templates).

    python tools/dev/unicode_tables.py      (needs PyPI tokenizers 0.23.3; Python 3.11; from the repository's root)

The classes are asked of the reference itself, code point by code point, because its parts follow different versions of
Unicode: ByteLevel's \\p{L}, \\p{N}, \\s are 16.0, Digits is 17.0, single_word's \\w is the Rust regex crate's.
"""
import contextlib

from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers

CODES = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]


def matched(pattern):
    split = pre_tokenizers.Split(Regex(pattern), "removed")
    return [c for c in CODES if not split.pre_tokenize_str(chr(c))]


def digits():
    split = pre_tokenizers.Digits(individual_digits=True)
    return [c for c in CODES if len(split.pre_tokenize_str("a" + chr(c))) == 2]


def word():
    tokenizer = Tokenizer(models.BPE({"x": 0}, [], unk_token="x"))
    tokenizer.add_tokens([AddedToken("QQ", single_word=True, normalized=False)])
    return [c for c in CODES if tokenizer.token_to_id("QQ") not in tokenizer.encode(chr(c) + "QQ").ids]


def python_space():
    return [c for c in CODES if chr(c).isspace()]


def unprintable():
    return [c for c in range(0x110000) if not chr(c).isprintable()]


def ranges(codes):
    out = []
    for c in codes:
        if out and out[-1][1] == c - 1:
            out[-1][1] = c
        else:
            out.append([c, c])
    return out


def case_runs(mapping):
    """Runs (first, last, stride, delta) of single-code mappings; the surrogates do not matter to a run."""
    out = []
    for c, to in sorted(mapping.items()):
        if out and out[-1][3] == to - c:
            first, last, stride, _ = out[-1]
            step = c - last
            if (first == last and step <= 2) or step == stride:
                out[-1][1], out[-1][2] = c, step
                continue
        out.append([c, c, 1, to - c])
    return out


def table(kind, name, rows):
    print(f"const {kind} {name}[] = {{")
    line = "   "
    for row in rows:
        item = " {" + ", ".join(row) + "},"
        if len(line) + len(item) > 108:
            print(line)
            line = "   "
        line += item
    print(line + "\n};")
    print(f"const size_t {name}_count = {len(rows)};\n")


def hexes(row):
    return [f"{v:#x}" for v in row]


def cased(name, convert):
    single = {c: ord(convert(chr(c))) for c in CODES if convert(chr(c)) != chr(c) and len(convert(chr(c))) == 1}
    several = [[c, *map(ord, convert(chr(c)))] for c in CODES if len(convert(chr(c))) > 1]
    table("CaseRun", f"{name}_runs", [[*hexes(r[:2]), str(r[2]), str(r[3])] for r in case_runs(single)])
    table("CaseSpecial", f"{name}_specials", [hexes((r + [0, 0])[:4]) for r in several])


def write(path, tables):
    with open(path, "w") as file, contextlib.redirect_stdout(file):
        print("// Written by tools/dev/unicode_tables.py; not to be edited.")
        print('#include "model/text/unicode_tables.h"\n\nnamespace qlora::unicode {\n')
        print("// clang-format off")
        tables()
        print("// clang-format on\n\n}  // namespace qlora::unicode")


def class_tables():
    for name, codes in (("letters", matched(r"\p{L}")), ("numbers", matched(r"\p{N}")), ("digits", digits()),
                        ("spaces", matched(r"\s")), ("words", word())):
        table("CodeRange", name, [hexes(r) for r in ranges(codes)])


def python_tables():
    for name, codes in (("python_spaces", python_space()), ("unprintables", unprintable())):
        table("CodeRange", name, [hexes(r) for r in ranges(codes)])
    cased("lower", str.lower)
    cased("upper", str.upper)
    cased("title", str.title)


write("model/text/unicode_classes.cc", class_tables)
write("model/text/unicode_python.cc", python_tables)
