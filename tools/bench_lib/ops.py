"""--ops: bench_kernels, each op's share of its roof as a table. --op-share: where a step's time goes, by perf's samples."""

import json
import os
import re
import shutil
import subprocess

from bench_lib import docs, engines, roofs
from bench_lib.engines import place

FULL = engines.ROOT / "docs/bench/ops.md"

# What the project wants, as (benchmarks, counter, share, words).
WANTED = (
    (r"^product/n[tn]_nf4_bf16/M:(512|2048)/", "peak%", 85, "NF4 products, M of 512 and more"),
    (r"^few/nf4/M:1/", "read%", 70, "NF4 products of one row"),
    (r"^attention/(for|back)ward_bf16/length:8192/", "peak%", 50, "attention at 8,192 tokens"),
)
COUNTERS = {
    "peak%": "the peak",
    "own%": "what its instructions reach",
    "read%": "reading from memory",
    "move%": "moving as many bytes",
}
AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2", "OPENBLAS_CORETYPE": "Haswell"}
AVX2_SIZES = ((512, 1536, 576), (512, 4096, 4096))


def kernels(options, threads, pattern, isa=None):
    """[{name, counters...}] of bench_kernels."""
    done = subprocess.run(
        [
            roofs.program(options, "bench_kernels"),
            f"--benchmark_filter={pattern}",
            "--benchmark_format=json",
        ],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "QLORA_BENCH_THREADS": str(threads), **({"QLORA_ISA": isa} if isa else {})},
    )
    if done.returncode:
        place.die(1, "bench_kernels failed:\n" + done.stderr[-2000:])
    return json.loads(done.stdout)["benchmarks"]


def row_of(one):
    name = one["name"].removesuffix("/manual_time").removesuffix("/iterations:1")
    rate = f"{one['GFLOP/s']:,.0f} GFLOP/s" if "GFLOP/s" in one else f"{one['GB/s']:,.1f} GB/s"
    shares = [f"{one[counter]:.0f} % of {words}" for counter, words in COUNTERS.items() if counter in one]
    if "own%" in one and one["own%"] == one["peak%"]:
        shares.pop()
    milliseconds = one["real_time"] * {"ns": 1e-6, "us": 1e-3, "ms": 1, "s": 1e3}[one["time_unit"]]
    return [name, f"{milliseconds:,.3f}", rate, "; ".join(shares)]


def span(values, digits=0):
    low, high = f"{min(values):,.{digits}f}", f"{max(values):,.{digits}f}"
    return low if low == high else f"{low} to {high}"


def summary(found):
    """[op and variant, shapes, rate, share of its roof] over all shapes of each."""
    families = {}
    for one in found:
        name = "/".join(word for word in one["name"].split("/")[:2] if not word[:1].isdigit() and ":" not in word)
        families.setdefault(name, []).append(one)
    rows = []
    for name, runs in families.items():
        rate, digits = ("GFLOP/s", 0) if "GFLOP/s" in runs[0] else ("GB/s", 1)
        shares = [
            f"{span([one[counter] for one in runs])} % of {words}"
            for counter, words in COUNTERS.items()
            if counter in runs[0] and not (counter == "own%" and runs[0]["own%"] == runs[0]["peak%"])
        ]
        rows.append([name, len(runs), f"{span([one[rate] for one in runs], digits)} {rate}", "; ".join(shares)])
    return rows


def marks_of(found):
    marks = []
    for pattern, counter, wanted, words in WANTED:
        shares = [one[counter] for one in found if re.search(pattern, one["name"]) and counter in one]
        if shares:
            line = f"{words}: {span(shares)} % of {COUNTERS[counter]}, {wanted} wanted"
            marks.append((min(shares) >= wanted, line))
    return marks


def avx2(options, threads):
    """(good, line): our fp32 products against the peers', all with AVX2 alone."""
    lines, good = [], True
    for m, n, k in AVX2_SIZES:
        ours = kernels(options, threads, f"^product/nt_nf4_fp32/M:{m}/N:{n}/K:{k}/", "avx2")[0]["GFLOP/s"]
        theirs = roofs.products(threads, (m, n, k), ("fp32",), **AVX2)
        best = max(theirs, key=theirs.get)
        share = ours * 1e9 / theirs[best]
        good = good and share >= 0.8
        lines.append(f"{m} x {n} x {k}: {ours:,.0f} GFLOP/s, {100 * share:.0f} % of {best}'s")
    return good, f"fp32 products with AVX2 (80 % of the faster of oneDNN, MKL and OpenBLAS wanted): {'; '.join(lines)}"


def ops(options):
    place.peers_python()
    threads = options.threads
    before = roofs.measure(options, threads)
    found = kernels(options, threads, options.filter)
    theirs = roofs.products(threads)
    best = roofs.better(before, roofs.measure(options, threads))
    table = docs.table(["op", "ms", "rate", "share"], [row_of(one) for one in found])
    marks = [roofs.verdict(best, theirs), *marks_of(found), avx2(options, threads)]
    print(*roofs.lines_of(best), "", table, "", sep="\n")
    for good, line in marks:
        print("  ok     " if good else "  missed ", line)
    if options.write_docs:
        head = f"`{docs.command()}`, {docs.today()}, {engines.machine()}, load {os.getloadavg()[0]:.1f} at the end."
        FULL.parent.mkdir(exist_ok=True)
        FULL.write_text(f"# Each op, shape by shape\n\n{head}\n\n{table}\n", encoding="utf-8")
        short = docs.table(["op", "shapes", "rate", "share"], summary(found))
        lines = [head, "Shape by shape: [bench/ops.md](bench/ops.md).", "", *(f"- {line}" for line in roofs.lines_of(best))]
        docs.write("ops", "\n".join([*lines, "", short, "", docs.marks(marks)]))
    return 0 if all(good for good, _ in marks) else 1


# Functions of the program by what a user would call them; the first that matches.
PARTS = (
    ("gradients of A and B", r"gemm_tn"),
    ("decoding weights", r"::(decode_|block_)"),
    ("products", r"::(gemm|pack|multiply|tiles|dots)"),
    ("attention", r"::attention"),
    ("gated activation", r"::gated_act"),
    ("norms", r"::rms_norm"),
    ("cross-entropy", r"::cross_entropy"),
    ("rotary embedding", r"::rope"),
    ("optimizer and gradient norm", r"::(adamw|sgd|l2_norm|grad_norm|first_non_finite)"),
    ("rows: embedding, gathers, casts, dropout", r"::(cast_row|gather|scatter|zero_rows|embedding|dropout|decode_row)"),
)


def shares_of(lines):
    """{part: share of the program's own samples}, {"system": share of all} from lines of `samples symbol`."""
    counts, system, other = {name: 0 for name, _ in PARTS}, 0, 0
    for line in lines:
        match = re.match(r"\s*(\d+)\s+\[(.)\]\s+(.*)", line)
        if not match:
            continue
        count, where, symbol = int(match[1]), match[2], match[3]
        if where == "k":
            system += count
            continue
        name = next((name for name, pattern in PARTS if re.search(pattern, symbol)), None)
        if name:
            counts[name] += count
        else:
            other += count
    own = sum(counts.values()) + other
    shares = {name: count / own for name, count in counts.items() if count} if own else {}
    return {**shares, "the rest, with the start": other / own if own else 0}, system / max(1, own + system)


def op_share(options):
    perf = shutil.which("perf")
    if not perf:
        place.die(2, "perf: no such program; install linux-perf (Ubuntu: linux-tools-generic)")
    _, nf4 = place.bases(options)
    data = engines.text_rows(options.work, options.steps * options.batch * options.sequence)
    samples = options.work / "perf.data"
    run = {name: getattr(options, name) for name in ("sequence", "batch", "steps", "threads", "memory")}
    record = [perf, "record", "-q", "-F", "499", "-e", "task-clock", "-o", str(samples), "--"]
    result = engines.ours(options, nf4, data, {**run, "dtype": options.compute_dtype}, record)
    done = subprocess.run(
        [perf, "report", "-i", str(samples), "--stdio", "-g", "none", "-F", "sample,symbol"],
        capture_output=True,
        text=True,
        check=True,
    )
    shares, system = shares_of(done.stdout.splitlines())
    rows = [[name, f"{100 * s:.1f} %"] for name, s in sorted(shares.items(), key=lambda item: -item[1])]
    table = docs.table(["part of a step", "samples"], rows)
    kernel = sum(s for name, s in shares.items() if name in [p for p, _ in PARTS[:4]])
    marks = [(kernel >= 0.8, f"products and attention: {100 * kernel:.0f} % of the samples, 80 wanted")]
    head = (
        f"{result['tokens_per_second']:,.0f} tokens/s under perf; {100 * system:.0f} % of all samples, not counted below, "
        f"are the system's"
    )
    print(head, "", table, "", sep="\n")
    for good, line in marks:
        print("  ok     " if good else "  missed ", line)
    if options.write_docs:
        when = f"`{docs.command()}`, {docs.today()}, {engines.machine()}: {head}."
        docs.write("op-share", "\n".join([when, "", table, "", docs.marks(marks)]))
    return 0 if marks[0][0] else 1
