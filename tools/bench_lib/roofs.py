"""What the machine can do at most (tests/roofs), and whether the peer's products stay below it."""

import json
import subprocess

from bench_lib import docs, engines
from bench_lib.engines import place


def program(options, name):
    """A program of the build that is not built by default; built where the programs lie in a build folder."""
    path = options.bin / name
    folder = options.bin.parent
    if (folder / "CMakeCache.txt").is_file():
        done = subprocess.run(
            ["cmake", "--build", str(folder), "--target", name], capture_output=True, text=True, check=False
        )
        if done.returncode:
            print(done.stdout[-2000:])
            hint = "; configure with -DQLORA_BENCH=ON (libbenchmark-dev)" if name.startswith("bench") else ""
            place.die(2, f"{folder}: {name} does not build{hint}")
    if not path.is_file():
        place.die(2, f"{path}: no such program; give a --bin that lies in a build folder")
    return str(path)


def can_measure(options):
    return (options.bin.parent / "CMakeCache.txt").is_file() or (options.bin / "roofs").is_file()


def better(one, other):
    """Both of one machine and as many threads: a clock is not the same all day."""
    flops = {name: max(flops, other["flops"][name]) for name, flops in one["flops"].items()}
    read = max(one["read_bytes"], other["read_bytes"])
    return {**one, "flops": flops, "peak": max(flops.values()), "read_bytes": read}


def measure(options, threads, loops=False):
    """{threads, isa, flops: {arithmetic: FLOP/s}, fastest, peak, read_bytes}; of loops also {loops: {arithmetic:
    {operands: FLOP/s}}, write_bytes}"""
    done = subprocess.run(
        [program(options, "roofs"), "--threads", str(threads), *(["--loops"] if loops else [])],
        capture_output=True,
        text=True,
        check=True,
    )
    roofs = json.loads(done.stdout)
    roofs["peak"] = max(roofs["flops"].values())
    return roofs


def products(threads, size=(2048, 2048, 2048), types=("bf16", "fp32"), **narrowed):
    """{type: FLOP/s} of the peers' products of [m, k] and [n, k]."""
    command = [place.peers_python(), str(place.HERE / "bench_matmul.py"), "--threads", str(threads)]
    done = subprocess.run(
        [*command, "--size", *map(str, size), "--types", *types],
        capture_output=True,
        text=True,
        check=False,
        env={**engines.environment(threads), **narrowed},
    )
    if done.returncode:
        place.die(1, "tests/peers/bench_matmul.py failed:\n" + done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


def fp32_peak(roofs):
    return max(flops for name, flops in roofs["flops"].items() if name.startswith("fp32"))


def verdict(roofs, theirs):
    """(good, line): void where the peers' products are faster than what is called the peak."""
    lines = []
    for kind, roof in (("bf16", roofs["peak"]), ("fp32", fp32_peak(roofs))):
        best = max(flops for name, flops in theirs.items() if name.startswith(kind))
        lines.append((best <= roof, f"{kind} {best / 1e9:,.0f} of {roof / 1e9:,.0f}"))
    good = all(fine for fine, _ in lines)
    text = "the peers' products stay below the peak" if good else "VOID: the peers' products are above the peak"
    return good, f"{text} (GFLOP/s, {roofs['threads']} threads: {'; '.join(line for _, line in lines)})"


def lines_of(roofs):
    threads = f"{roofs['threads']} thread{'s' if roofs['threads'] > 1 else ''}"
    for name, flops in roofs["flops"].items():
        mark = ", the peak" if flops == roofs["peak"] else ""
        yield f"{threads}, {name}: {flops / 1e9:,.0f} GFLOP/s{mark}"
    yield (
        f"{threads}, read from memory ({roofs['read_from'] / 2**20:.0f} MiB): "
        f"{roofs['read_bytes'] / 1e9:.1f} GB/s"
    )


OPERANDS = {
    "registers": "from registers",
    "nearest cache": "from the nearest cache",
    "second cache": "w from the nearest, x from the second cache",
}


def loops_table(measured):
    """What products' inner loops keep of the roofs, of each of the given numbers of threads."""
    rows = []
    for roofs in measured:
        for name, loops in roofs["loops"].items():
            cells = (f"{loops[o] / 1e9:,.0f} ({loops[o] / roofs['flops'][name]:.0%})" for o in OPERANDS)
            rows.append([roofs["threads"], name, f"{roofs['flops'][name] / 1e9:,.0f}", *cells])
    return docs.table(["threads", "GFLOP/s", "roof", *OPERANDS.values()], rows)


def written_line(roofs):
    threads = f"{roofs['threads']} thread{'s' if roofs['threads'] > 1 else ''}"
    return f"{threads}, written past the caches: {roofs['write_bytes'] / 1e9:.1f} GB/s" if roofs["write_bytes"] else None
