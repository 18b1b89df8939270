"""The race: both engines in turns over the same rows, and the project's marks."""

import datetime
import json
import os
import statistics
import sys

from bench_lib import docs, engines, flops, roofs
from bench_lib.engines import place

# The peer's variants: over long rows as its users run it, over short ones as one who cares would write it.
VARIANTS = {
    "text": [{"dtype": d, "recompute": r} for r in (False, True) for d in ("bf16", "fp32")],
    "short": [{"dtype": d, "dense": True} for d in ("fp32", "bf16")],
}
START, LENGTH, MOST_MIB, PEAK = 0.5, 1.1, 1540, 0.65


def median(runs, what):
    return statistics.median(run[what] for run in runs)


def marks_of(options, ours, peers, name):
    """(good, line) for each mark that the runs tell."""
    # The same rows; but ours have a token more, the template's end of line behind the answer.
    unit = "rows_per_second" if options.rows == "short" else "tokens_per_second"
    speed, theirs = median(ours, unit), median(peers, unit)
    peak, start = max(run["peak_bytes"] for run in ours) / 2**20, median(ours, "first_step")
    # With a budget of a quarter of what the peer holds at least, some of the speed may go.
    wanted = 2 if options.rows == "short" else 2.5 if options.memory else 3.5
    marks = [
        (
            speed >= wanted * theirs,
            f"{speed:.1f} {unit.replace('_per_second', '/s')} against {theirs:.1f} ({name}): {speed / theirs:.2f} times, {wanted} wanted",
        )
    ]
    if options.rows == "text":
        marks.append(
            (
                peak <= MOST_MIB,
                f"peak {peak:.0f} MiB, at most {MOST_MIB} wanted; "
                f"the peer's {max(run['peak_bytes'] for run in peers) / 2**20:.0f}",
            )
        )
    length = median(ours, "first_step_length")
    marks.append(
        (
            start <= START,
            f"the first step begins after {start:.2f} s ({median(ours, 'reserving'):.2f} of it until the system "
            f"has given the arena's pages), {START} wanted; "
            f"the peer's after {median(peers, 'first_step'):.1f}",
        )
    )
    if options.rows == "text":  # short rows' steps are not alike
        marks.append((length <= LENGTH, f"the first step is as long as {length:.2f} others, {LENGTH} wanted"))
    return marks


def peak_marks(options, before, after, speed, config):
    """(good, line) of the step's share of the machine's peak, and of the peak itself."""
    best = roofs.better(before, after)
    share = speed * flops.per_token(config, options.sequence) / best["peak"]
    return [
        (share >= PEAK, f"{100 * share:.0f} % of the peak of {best['peak'] / 1e9:,.0f} GFLOP/s, {100 * PEAK:.0f} wanted"),
        roofs.verdict(best, roofs.products(options.threads)),
    ]


def table_of(results):
    """results: {engine: [run, ...]} in the order of the table."""
    rows = []
    for name, runs in results.items():
        each = ", ".join(f"{run['tokens_per_second']:,.1f}" for run in runs)
        which = f"median of {len(runs)}: {each}" if len(runs) > 1 else "once"
        rows.append(
            [
                f"{name} ({which})",
                f"{median(runs, 'tokens_per_second'):,.1f}",
                f"{median(runs, 'cpu_seconds'):.2f}",
                f"{max(run['peak_bytes'] for run in runs) / 2**20:,.0f} MiB",
                f"{median(runs, 'first_step'):.2f} s",
            ]
        )
    head = ["", "tokens/s", "processor seconds for 1,000 tokens", "peak", "first step begins after"]
    return docs.table(head, rows)


def race(options):
    screen = sys.stderr if options.json else sys.stdout

    def say(*words):
        print(*words, file=screen, flush=True)

    def show(engine, run):
        say(
            f"  {engine:<34} {run['tokens_per_second']:8.1f} tokens/s, {run['cpu_seconds']:5.2f} CPU s/1000  "
            f"peak {run['peak_bytes'] / 2**20:6.0f} MiB  first step begins after {run['first_step']:5.2f} s  "
            f"losses {' '.join(f'{x:.4f}' for x in run['losses'])}"
        )

    place.peers_python()
    _, nf4 = place.bases(options)
    data = engines.SHORT_ROWS if options.rows == "short" else engines.text_rows(options.work)
    when = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    load = os.getloadavg()[0]
    say(f"{when}, {engines.machine()}, load {load:.1f} before the start{' (not quiet)' if load > 0.5 else ''}")
    say(
        f"{'rows of the quickstart' if options.rows == 'short' else f'sequence {options.sequence}'}, "
        f"batch {options.batch}, {options.threads} threads, {options.rounds} rounds of {options.steps} steps"
        f"{', --memory ' + options.memory if options.memory else ''}"
    )
    run = {name: getattr(options, name) for name in ("rows", "sequence", "batch", "steps", "threads")}
    mine = {**run, "dtype": options.compute_dtype, "memory": options.memory}
    ours, tried = [], []
    share = options.rows == "text" and not options.memory and roofs.can_measure(options)
    before = roofs.measure(options, options.threads) if share else None
    say("round 1")
    ours.append(engines.ours(options, nf4, data, mine))
    show(f"qlora, {options.compute_dtype}", ours[0])
    for variant in VARIANTS[options.rows]:
        tried.append(engines.peer(options, nf4, data, {**run, **variant}))
        show(engines.name_of(variant, "peer"), tried[-1])
    best = max(range(len(tried)), key=lambda i: tried[i]["tokens_per_second"])
    variant = VARIANTS[options.rows][best]
    name, peers = engines.name_of(variant, "peer"), [tried[best]]
    for number in range(2, options.rounds + 1):
        say(f"round {number}")
        ours.append(engines.ours(options, nf4, data, mine))
        show(f"qlora, {options.compute_dtype}", ours[-1])
        peers.append(engines.peer(options, nf4, data, {**run, **variant}))
        show(name, peers[-1])

    end = os.getloadavg()[0]
    say(f"medians of {options.rounds}, load {end:.1f} at the end")
    marks = marks_of(options, ours, peers, name)
    if share:
        config = json.loads((nf4 / "config.json").read_text(encoding="utf-8"))
        after = roofs.measure(options, options.threads)
        marks += peak_marks(options, before, after, median(ours, "tokens_per_second"), config)
    for good, line in marks:
        say("  ok     " if good else "  missed ", line)
    ratio = median(ours, "rows_per_second") / median(peers, "rows_per_second")
    if options.json:
        result = {
            "when": when,
            "machine": engines.machine(),
            "load": load,
            "ours": ours,
            "peer": peers,
            "peer_variant": name,
            "ratio": ratio,
        }
        print(json.dumps(result, indent=1))
    if options.write_docs:
        others = {
            engines.name_of(v, "peer"): [r]
            for v, r in zip(VARIANTS[options.rows], tried)
            if v is not variant
        }
        results = {f"qlora, {options.compute_dtype}": ours, name: peers, **others}
        body = (
            f"`{docs.command()}`, {when}, {engines.machine()}, load {load:.1f} before the start and {end:.1f} "
            f"at the end.\n\n{table_of(results)}\n\n" + docs.marks(marks)
        )
        docs.write(f"race-{options.rows}", body)
    return 0 if all(good for good, _ in marks) else 1
