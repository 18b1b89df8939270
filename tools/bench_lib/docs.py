"""Markdown tables, and the sections of docs/benchmarks.md that tools/bench writes."""

import datetime
import sys

from bench_lib.engines import ROOT, place

FILE = ROOT / "docs/benchmarks.md"


def table(head, rows):
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines).replace("|  |", "| |")


def marks(told):
    """(good, line) pairs as a list."""
    return "\n".join(f"- {'met' if good else 'missed'}: {line}" for good, line in told)


def command():
    return " ".join(["tools/bench", *(word for word in sys.argv[1:] if word != "--write-docs")])


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
