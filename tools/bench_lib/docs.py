"""Markdown tables, and the sections of docs/benchmarks.md that tools/bench writes."""

import datetime
import shlex
import sys

from bench_lib.engines import ROOT, place

FILE = ROOT / "docs/benchmarks.md"


def table(head, rows):
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines).replace("|  |", "| |")


def marks(told):
    """(good, line) pairs as a list."""
    return "\n".join(f"- {'met' if good else 'missed'}: {line}" for good, line in told)


def command(words=None):
    """The command line, without what says where things lie on this machine."""
    words = list(sys.argv[1:] if words is None else words)
    for name, takes in (("--write-docs", 0), ("--json", 0), ("--again", 0), ("--gguf", 1), ("--bin", 1), ("--work", 1)):
        while name in words:
            at = words.index(name)
            del words[at : at + 1 + takes]
        words = [word for word in words if not word.startswith(name + "=")]
    return shlex.join(["tools/bench", *words])


def today():
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d")


def replaced(text, name, body):
    """`text` with what stands between the marks of section `name` replaced; None where the marks are not there, once each
    and in order."""
    begin, end = f"<!-- tools/bench: {name} -->\n", f"<!-- end of {name} -->"
    at, until = text.find(begin), text.find(end)
    if at < 0 or until < at or text.count(begin) != 1 or text.count(end) != 1:
        return None
    return text[: at + len(begin)] + body.strip("\n") + "\n" + text[until:]


def write(name, body):
    text = replaced(FILE.read_text(encoding="utf-8"), name, body)
    if text is None:
        place.die(2, f"{FILE}: no section between <!-- tools/bench: {name} --> and <!-- end of {name} -->; put them back")
    FILE.write_text(text, encoding="utf-8")
    print(f"{FILE.relative_to(ROOT)}: section {name} written", file=sys.stderr)
