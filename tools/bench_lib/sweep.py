"""--sweep: our engine at every length, thread count, compute type, with recomputing and without; the peer where asked;
growth with rank, batch and layers. Each run is kept in a file, so that a sweep that was cut goes on where it ended."""

import hashlib
import json
import os
import sys
import time

from bench_lib import docs, engines, flops, layers, roofs, sweep_report
from bench_lib.engines import place

SEQUENCES = (512, 1024, 2048, 4096, 8192)
RANKS, BATCHES, LAYERS = (8, 16, 32, 64, 128), (1, 2, 4, 8), (6, 12, 18, 24, 30)
STEP_TOKENS = 2048  # as many as fit, one row at least


def run_of(sequence=512, threads=2, dtype="bf16", recompute=False, steps=4, **other):
    batch = max(1, STEP_TOKENS // sequence)
    if batch * sequence > STEP_TOKENS:
        steps = max(2, steps // 2)
    run = {"sequence": sequence, "batch": batch, "threads": threads, "dtype": dtype, "recompute": recompute}
    return {"engine": "qlora", **run, "steps": steps, **other}


def plan(options):
    """Every run, what matters most first: a budget cuts the end off."""
    steps, lengths = options.steps, options.sequences

    def group(threads, dtype, recompute):
        return [run_of(n, threads, dtype, recompute, steps) for n in lengths]

    both = tuple(sorted({1, options.threads}, reverse=True))
    most = both[0]
    runs = group(most, "bf16", False)
    for n in options.peer_sequences:
        runs += [run_of(n, most, "bf16", again, max(2, steps - 1), engine="peer") for again in (False, True)]
    runs += group(1, "bf16", False)
    runs += [run_of(steps=steps, threads=most, rank=r) for r in RANKS]
    runs += [{**run_of(steps=steps, threads=most), "batch": b} for b in BATCHES]
    runs += [run_of(steps=steps, threads=most, layers=n) for n in LAYERS]
    runs += group(most, "bf16", True) + group(most, "fp32", False) + group(1, "bf16", True)
    runs += group(most, "fp32", True) + group(1, "fp32", False) + group(1, "fp32", True)
    return list({key_of(run): run for run in runs}.values())


def key_of(run):
    return json.dumps(run, sort_keys=True)


class Results:
    """What was measured, in a file that is written after each run. Figures of another build of the program do not count."""

    def __init__(self, path, program, again):
        self.path = path
        self.values = {"program": program, "begun": None, "load": [], "runs": {}}
        if path.exists() and not again:
            old = json.loads(path.read_text(encoding="utf-8"))
            if old.get("program") == program:
                self.values = old
            else:
                print(f"{path}: of another build of qlora-train; measured anew")

    def get(self, run):
        return self.values["runs"].get(key_of(run))

    def keep(self, run, result):
        self.values["runs"][key_of(run)] = result
        self.save()

    def save(self):
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(self.values, indent=1), encoding="utf-8")
        os.replace(part, self.path)


def seconds_of(run, done, config):
    """What a run will take, judged by the runs that were made: by those like it where there are some."""
    config = {**config, "num_hidden_layers": run.get("layers") or config["num_hidden_layers"]}
    work = run["steps"] * run["batch"] * run["sequence"]
    work *= flops.per_token(config, run["sequence"], run.get("rank") or 16)
    like = ("engine", "threads", "dtype", "recompute")
    for names, slower in ((like, 1), (like[:3], 1.4), (like[:2], 3), (like[:1], 6)):
        rates = [r["work"] / r["took"] for other, r in done if all(other[n] == run[n] for n in names)]
        if rates:
            return slower * work / min(rates[-3:])
    return 30.0


def sweep(options):
    place.peers_python()
    plain, nf4 = place.bases(options)
    config = json.loads((nf4 / "config.json").read_text(encoding="utf-8"))
    program = hashlib.sha256((options.bin / "qlora-train").read_bytes()).hexdigest()[:16]
    results = Results(options.work / "sweep.json", program, options.again)
    values = results.values
    values["begun"] = values["begun"] or docs.today()
    values["load"].append(round(os.getloadavg()[0], 1))
    values["machine"], values["config"], values["options"] = engines.machine(), config, sys.argv[1:]
    counts = sorted({1, options.threads})
    before = {threads: roofs.measure(options, threads) for threads in counts}
    begun, left_out, done = time.monotonic(), [], []
    runs = plan(options)
    done = [(run, results.get(run)) for run in runs if results.get(run)]
    for number, run in enumerate(runs, 1):
        if results.get(run):
            continue
        left = options.budget * 60 - (time.monotonic() - begun) if options.budget else float("inf")
        need = seconds_of(run, done, config)
        if need > left:
            left_out.append(run)
            continue
        result = one(options, nf4, config, run)
        results.keep(run, result)
        done.append((run, result))
        print(
            f"[{number}/{len(runs)}] {sweep_report.words_of(run):<58} {result['median_step']:9.1f} tokens/s "
            f"{result['peak_bytes'] / 2**20:7.0f} MiB {result['took']:6.1f} s",
            flush=True,
        )
    values["load"].append(round(os.getloadavg()[0], 1))
    for threads in counts:
        theirs = roofs.products(threads)
        best = roofs.better(before[threads], roofs.measure(options, threads))
        values.setdefault("roofs", {})[str(threads)] = best
        values.setdefault("verdicts", {})[str(threads)] = roofs.verdict(best, theirs)
    results.save()
    return sweep_report.report(options, values, done, left_out)


def one(options, nf4, config, run):
    began = time.monotonic()
    data = engines.text_rows(options.work, run["steps"] * run["batch"] * run["sequence"])
    base = nf4
    if run.get("layers") and run["layers"] != config["num_hidden_layers"]:
        base = layers.first_layers(nf4, run["layers"], options.work / f"{nf4.name}-{run['layers']}-layers")
    result = engines.ours(options, base, data, run) if run["engine"] == "qlora" else engines.peer(options, base, data, run)
    config = {**config, "num_hidden_layers": run.get("layers") or config["num_hidden_layers"]}
    result["flops_per_token"] = flops.per_token(config, run["sequence"], run.get("rank") or 16)
    result["work"] = run["steps"] * run["batch"] * run["sequence"] * result["flops_per_token"]
    result["took"] = time.monotonic() - began
    result.setdefault("median_step", result["tokens_per_second"])
    return result
