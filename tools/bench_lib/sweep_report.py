"""What a sweep says: tables, a picture, a text plot, and the marks that hold for it."""

from bench_lib import docs, flops, plot
from bench_lib.engines import ROOT

PICTURE = ROOT / "docs/bench/sweep.svg"


def words_of(run):
    words = [run["engine"], f"sequence {run['sequence']}", f"batch {run['batch']}", run["dtype"]]
    words += ["recomputed"] if run["recompute"] else []
    words += [f"rank {run['rank']}"] if run.get("rank") else []
    words += [f"{run['layers']} layers"] if run.get("layers") else []
    return ", ".join([*words, f"{run['threads']} thread{'s' if run['threads'] > 1 else ''}"])


def left_words(runs):
    """What was left out, a line for runs that differ in one thing."""
    groups = {}
    for run in runs:
        kind = [run["engine"], run["dtype"], *(["recomputed"] if run["recompute"] else [])]
        kind.append(f"{run['threads']} thread{'s' if run['threads'] > 1 else ''}")
        what = f"sequence {run['sequence']}" if is_plain(run) else f"batch {run['batch']}"
        what = f"rank {run['rank']}" if run.get("rank") else f"{run['layers']} layers" if run.get("layers") else what
        groups.setdefault(", ".join(kind), []).append(what)
    return [f"{kind}: {', '.join(each)}" for kind, each in groups.items()]


def is_plain(run):
    return not run.get("rank") and not run.get("layers") and run["batch"] == max(1, 2048 // run["sequence"])


def chosen(done, engine="qlora", **wanted):
    """(run, result) of the plain runs with these values, by length."""
    found = [
        (run, r)
        for run, r in done
        if run["engine"] == engine and is_plain(run) and all(run[k] == v for k, v in wanted.items())
    ]
    return sorted(found, key=lambda item: item[0]["sequence"])


def share(values, run, result):
    """Of the peak on as many threads."""
    peak = values["roofs"][str(run["threads"])]["peak"]
    return result["median_step"] * result["flops_per_token"] / peak


def fp32_share(values, run, result):
    roofs = values["roofs"][str(run["threads"])]["flops"]
    return result["median_step"] * result["flops_per_token"] / max(v for k, v in roofs.items() if k.startswith("fp32"))


def best_peer(done, sequence):
    runs = [r for run, r in chosen(done, "peer") if run["sequence"] == sequence]
    return max(runs, key=lambda r: r["median_step"], default=None)


def speeds_table(values, done):
    rows = []
    for engine in ("qlora", "peer"):
        runs = chosen(done, engine)
        runs.sort(key=lambda i: (-i[0]["threads"], i[0]["dtype"], i[0]["recompute"], i[0]["sequence"]))
        for run, r in runs:
            of_fp32 = f"{100 * fp32_share(values, run, r):.0f} %" if run["dtype"] == "fp32" else ""
            rows.append(
                [
                    engine,
                    run["threads"],
                    run["dtype"],
                    "yes" if run["recompute"] else "no",
                    f"{run['sequence']:,}",
                    run["batch"],
                    f"{r['median_step']:,.0f}",
                    f"{r['median_step'] * r['flops_per_token'] / 1e9:,.0f}",
                    f"{100 * share(values, run, r):.1f} %",
                    of_fp32,
                    f"{r['peak_bytes'] / 2**20:,.0f}",
                ]
            )
    head = ["", "threads", "compute", "recomputed", "sequence", "rows", "tokens/s", "GFLOP/s", "of the peak"]
    return docs.table([*head, "of fp32's peak", "MiB"], rows)


def growth(done, threads):
    """{what: [(x, seconds of a step)]}"""
    out = {"rank": [], "batch": [], "layers": []}
    for run, r in done:
        if run["engine"] != "qlora" or run["sequence"] != 512 or run["threads"] != threads:
            continue
        if run["dtype"] != "bf16" or run["recompute"]:
            continue
        seconds = run["batch"] * run["sequence"] / r["median_step"]
        if run.get("rank"):
            out["rank"].append((run["rank"], seconds))
        elif run.get("layers"):
            out["layers"].append((run["layers"], seconds))
        else:
            out["batch"].append((run["batch"], seconds))
    return {what: sorted(points) for what, points in out.items()}


def growth_table(grown):
    rows = []
    for what, points in grown.items():
        if len(points) < 3:
            continue
        slope, offset, farthest = flops.line_through(points)
        each = ", ".join(f"{x}: {1000 * y:,.0f}" for x, y in points)
        line = f"{1000 * offset:,.0f} + {1000 * slope:,.1f} a {'row' if what == 'batch' else what.rstrip('s')}"
        rows.append([what, each, line, f"{100 * farthest:.0f} %"])
    return docs.table(["", "milliseconds of a step", "line through them", "farthest from it"], rows)


def marks_of(values, done, threads):
    """(good, line) of what the sweep can tell; a mark whose runs are missing is not told."""
    marks = [(good, line) for good, line in values["verdicts"].values()]
    plain = {run["sequence"]: (run, r) for run, r in chosen(done, threads=threads, dtype="bf16", recompute=False)}
    single = {run["sequence"]: r for run, r in chosen(done, threads=1, dtype="bf16", recompute=False)}
    for sequence, (run, r) in plain.items():
        peer = best_peer(done, sequence)
        if peer:
            times = r["median_step"] / peer["median_step"]
            marks.append((times >= 3.5, f"sequence {sequence}: {times:.2f} times the peer's tokens/s, 3.5 wanted"))
    if 512 in plain:
        part = share(values, *plain[512])
        marks.append((part >= 0.65, f"the step at sequence 512: {100 * part:.0f} % of the peak, 65 wanted"))
        if threads > 1 and 512 in single:
            times = plain[512][1]["median_step"] / single[512]["median_step"]
            marks.append((times >= 1.8, f"{threads} threads: {times:.2f} times one's tokens/s, 1.8 wanted"))
    if 512 in plain and 8192 in plain:
        short, long = ((n, plain[n][1]["median_step"]) for n in (512, 8192))
        rate = flops.attention_rate(values["config"], short, long) / values["roofs"][str(threads)]["peak"]
        marks.append((rate >= 0.5, f"attention from sequence 512 to 8192: {100 * rate:.0f} % of the peak, 50 wanted"))
    return marks


def pictures(values, done, threads):
    kinds = [
        ("bf16", threads, "bf16", False, {}),
        ("bf16, recomputed", threads, "bf16", True, {"hollow": True}),
        ("fp32", threads, "fp32", False, {"color": "b"}),
        ("fp32, recomputed", threads, "fp32", True, {"color": "b", "hollow": True}),
        ("bf16, 1 thread", 1, "bf16", False, {"dash": True}),
    ]
    if threads == 1:
        kinds.pop()
    panels = []
    for title, label, value in (
        ("Tokens a second", "tokens/s", lambda run, r: r["median_step"]),
        ("Share of the machine's peak", "%", lambda run, r: 100 * share(values, run, r)),
        ("Peak resident memory", "MiB", lambda run, r: r["peak_bytes"] / 2**20),
    ):
        lines = []
        for name, n, dtype, again, look in kinds:
            runs = chosen(done, threads=n, dtype=dtype, recompute=again)
            lines.append(plot.series(name, [(run["sequence"], value(run, r)) for run, r in runs], **look))
        peers = sorted({run["sequence"] for run, _ in chosen(done, "peer")})
        points = [
            (s, value({"threads": threads}, best_peer(done, s))) for s in peers
        ]
        lines.append(plot.series("peer, its faster variant", points, color="c"))
        panels.append((title, "sequence", label, [one for one in lines if one["points"]], True))
    key = panels[0][3]
    for what, points in growth(done, threads).items():
        if points:
            one = plot.series(what, [(x, 1000 * y) for x, y in points])
            label = {"rank": "rank", "batch": "rows of 512 tokens", "layers": "layers"}[what]
            panels.append((f"A step by {what}", label, "milliseconds", [one], False))
    title = f"qlora, SmolLM2-135M in NF4, {threads} threads: {values['machine']}, {values['begun']}"
    return plot.picture(title, panels, key)


def text_plot(done, threads):
    rows = []
    for dtype in ("bf16", "fp32"):
        for run, r in chosen(done, threads=threads, dtype=dtype, recompute=False):
            rows.append((f"{dtype} {run['sequence']:>5}", r["median_step"]))
    for sequence in sorted({run["sequence"] for run, _ in chosen(done, "peer")}):
        rows.append((f"peer {sequence:>5}", best_peer(done, sequence)["median_step"]))
    return plot.bars(f"tokens/s by sequence, {threads} threads", rows)


def report(options, values, done, left_out):
    threads = options.threads
    parts = [speeds_table(values, done), growth_table(growth(done, threads)), text_plot(done, threads)]
    marks = marks_of(values, done, threads)
    for part in parts:
        print("\n" + part)
    print()
    for good, line in marks:
        print("  ok     " if good else "  missed ", line)
    for line in left_words(left_out):
        print("  left out:", line)
    picture = options.work / "sweep.svg"
    if options.write_docs:
        picture = PICTURE
        picture.parent.mkdir(exist_ok=True)
        docs.write("sweep", section(values, parts, marks, left_out))
    picture.write_text(pictures(values, done, threads), encoding="utf-8")
    print(f"picture: {picture}")
    return 0 if all(good for good, _ in marks) else 1


def section(values, parts, marks, left_out):
    peaks = "; ".join(
        f"{threads} thread{'s' if threads != '1' else ''}: {roofs['peak'] / 1e9:,.0f} GFLOP/s ({roofs['fastest']}), "
        f"fp32 {max(v for k, v in roofs['flops'].items() if k.startswith('fp32')) / 1e9:,.0f}, "
        f"{roofs['read_bytes'] / 1e9:.1f} GB/s read"
        for threads, roofs in sorted(values["roofs"].items())
    )
    loads = ", ".join(str(load) for load in values["load"])
    lines = [
        f"`{docs.command()}`, {values['begun']}, {values['machine']}, load {loads} at the starts and the end. Peaks: {peaks}.",
        "",
        "![speed, share of the peak, memory and growth](bench/sweep.svg)",
        "",
        parts[0],
        "",
        parts[1],
        "",
        "```",
        parts[2],
        "```",
        "",
        docs.marks(marks),
    ]
    if left_out:
        lines.append("- left out: " + "; ".join(left_words(left_out)))
    return "\n".join(lines)
