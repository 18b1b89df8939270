"""tools/bench --device cuda [PART ...]: what a CUDA card does, each figure beside the roof measured in turns with it.

Parts run one after the other, each a process with its own time limit, and each figure is in DIR/PART.jsonl as soon as
it is measured: what is cut loses little, and one part can be run alone. Nothing but Python's standard library is
needed, and `tools/build --cuda`. --tune measures cuBLASLt's algorithms for the products of a step instead, and writes
the table that QLORA_GEMM_TABLE reads.
Exit codes: 0 the project's marks are met, 1 one is missed or was not measured, 2 usage, or something is missing."""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
# Of what part, which figures begin so, the share of the roof that is wanted.
MARKS = [("decode", "nf4, double quantization, ", 0.85), ("step", "8B, 2 x 2048 x 4, model flops", 0.50)]
# A figure that is begun in time may end after it.
GRACE = 60

parser = argparse.ArgumentParser(
    prog="tools/bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("parts", nargs="*", metavar="PART", help="[all; --list names them]")
parser.add_argument("--list", action="store_true", help="the parts' names, and what they measure")
parser.add_argument("--device", default="cuda", help="cuda or cuda:N [%(default)s]")
parser.add_argument("--budget", type=int, default=150, help="seconds of a part [%(default)s]")
parser.add_argument("--out", type=Path, default=ROOT / "build/bench-cuda", help="where figures go [%(default)s]")
parser.add_argument("--program", type=Path, default=ROOT / "build/release/bin/qlora-bench-cuda", help="[%(default)s]")
parser.add_argument("--tune", action="store_true", help="write the table of algorithms instead")
parser.add_argument("--table", type=Path, help="where it goes [algorithms.txt in --out]")
parser.add_argument("--tiny", action="store_true", help="whether it runs: no figure means anything")
for name, default in (("config", None), ("rows", 2), ("sequence", 2048), ("accumulation", 4), ("rank", 16)):
    parser.add_argument("--" + name, help=f"of the step and of --tune [{default or 'an 8B-shaped Llama'}]")
options = parser.parse_args()


def die(code, message):
    print(f"tools/bench: {message}", file=sys.stderr)
    sys.exit(code)


kind, _, index = options.device.partition(":")
if kind != "cuda" or not (index.isdigit() or index == ""):
    die(2, f"--device {options.device}: cuda or cuda:N")
if not options.program.exists():
    die(2, f"{options.program}: not built; run tools/build --cuda")


def program(*words):
    return [str(options.program), *words]


if options.list:
    sys.exit(subprocess.run(program("--help")).returncode)
known = subprocess.run(program("list"), capture_output=True, text=True, check=True).stdout.split()
for part in options.parts:
    if part not in known:
        die(2, f"{part}: no such part; one of {', '.join(known)}")
if options.tune and options.parts:
    die(2, f"--tune {options.parts[0]}: --tune is a part of its own")

options.out.mkdir(parents=True, exist_ok=True)
common = ["--device", index or "0", "--budget", str(options.budget)] + (["--tiny"] if options.tiny else [])
for name in ("config", "rows", "sequence", "accumulation", "rank"):
    if getattr(options, name) is not None:
        common += ["--" + name, str(getattr(options, name))]


def measured(part, *words):
    """The part's figures, and whether all of them are there."""
    figures = options.out / f"{part}.jsonl"
    figures.unlink(missing_ok=True)
    print(f"{time.strftime('%H:%M:%S')} {part}", flush=True)
    command = program(part, *common, "--json", str(figures), *words)
    try:
        code = subprocess.run(command, timeout=options.budget + GRACE).returncode
    except subprocess.TimeoutExpired:
        print(f"tools/bench: {part} was ended {GRACE} s after its time", file=sys.stderr)
        code = 1
    if code == 2:
        sys.exit(2)
    if code > 1 or code < 0:
        print(f"tools/bench: {part} failed with {code}: {' '.join(command)}", file=sys.stderr)
    lines = figures.read_text(encoding="utf-8").splitlines() if figures.exists() else []
    return [json.loads(line) for line in lines], code == 0


if options.tune:
    table = options.table or options.out / "algorithms.txt"
    _, whole = measured("tune", "--table", str(table))
    sys.exit(0 if whole else 1)

good, all_figures = True, {}
for part in options.parts or known:
    all_figures[part], whole = measured(part)
    good = good and whole
(options.out / "figures.json").write_text(json.dumps(all_figures, indent=1) + "\n", encoding="utf-8")
if options.tiny:
    sys.exit(0 if good else 1)
for part, prefix, wanted in MARKS:
    if part not in all_figures:
        continue
    found = [f for f in all_figures[part] if f["what"].startswith(prefix)]
    for f in found:
        met = f["share"] >= wanted
        good = good and met
        print(f"  {'ok    ' if met else 'missed'} {part}, {f['what']}: {f['share']:.2f} of the roof, {wanted} wanted")
    if not found:
        good = False
        print(f"  missed {part}, {prefix}: was not measured")
print(f"{options.out / 'figures.json'} has all figures")
sys.exit(0 if good else 1)
