"""One run of an engine as a process of its own: ours, and the peer's (tests/peers)."""

import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tests/peers"))
import place  # noqa: E402

SHORT_ROWS = ROOT / "examples/address_train.jsonl"  # the quickstart's
TEXT_TOKENS = 14000  # of the text, no fewer


def environment(threads):
    return {**os.environ, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}


def machine():
    names = [
        line.split(":", 1)[1].strip()
        for line in open("/proc/cpuinfo", encoding="utf-8")
        if line.startswith("model name")
    ]
    return f"{names[0] if names else 'unknown CPU'}, {len(os.sched_getaffinity(0))} cores"


def text_rows(work, tokens=0):
    """A data set of one long text, which both engines cut into full rows: again and again until it has `tokens`."""
    times = tokens // TEXT_TOKENS + 1
    text = (place.HERE / "data/austen.txt").read_text(encoding="utf-8")
    data = work / (f"bench-{times}.jsonl" if times > 1 else "bench.jsonl")
    data.write_text(json.dumps({"text": text * times}) + "\n", encoding="utf-8")
    return data


def finished(process, log):
    """Peak resident bytes of the child (this process is smaller) and the processor seconds it took."""
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        place.die(1, f"{process.args[0]} failed; {log} says why")
    return usage.ru_maxrss * 1024, usage.ru_utime + usage.ru_stime


def our_command(program, base, data, run, out):
    """run: sequence, batch, steps, threads, dtype; and where wanted rows, rank, recompute, memory."""
    if run.get("rows") == "short":
        what = ["--dataset-format", "messages"]
    else:
        what = ["--dataset-format", "text"]
    command = [
        *(str(program), "--model", str(base), "--dataset", str(data), *what),
        *("--max-seq-length", str(run["sequence"]), "--no-shuffle"),
        *("--per-device-train-batch-size", str(run["batch"]), "--gradient-accumulation-steps", "1"),
        *("--max-steps", str(run["steps"]), "--compute-dtype", run["dtype"]),
        *("--output-dir", str(out), "--threads", str(run["threads"]), "--report-to", "none"),
    ]
    if run.get("memory"):
        command += ["--memory", run["memory"]]
    if run.get("rank"):
        command += ["--lora-r", str(run["rank"])]
    if run.get("recompute") is not None:
        command += ["--gradient-checkpointing", "all" if run["recompute"] else "none"]
    return command


def ours(options, base, data, run, before=()):
    """Trains; figures without the first step. `before` are words in front of the command, such as a profiler's."""
    out, log = options.work / "bench", options.work / "bench.log"
    shutil.rmtree(out, ignore_errors=True)
    metrics, first = out / "metrics.jsonl", 0.0
    command = [*before, *our_command(options.bin / "qlora-train", base, data, run, out), "--verbose"]
    with open(log, "w", encoding="utf-8") as output:
        began = time.time()
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment(run["threads"])
        )
        # The first line of metrics comes at the end of the first step and says how long that step took.
        while not first and not os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            if metrics.exists() and metrics.stat().st_size:
                first = time.time() - began
            time.sleep(0.01)
        peak, processor = finished(process, log)
    lines = [line for line in place.metrics(out) if "loss" in line]
    reserved = re.search(r" reserved in (\S+) s$", log.read_text(encoding="utf-8"), re.MULTILINE)
    steps = [
        (b["tokens"] - a["tokens"]) / (b["seconds"] - a["seconds"]) for a, b in zip(lines, lines[1:])
    ]
    seconds = lines[-1]["seconds"] - lines[0]["seconds"]
    return {
        "tokens_per_second": (lines[-1]["tokens"] - lines[0]["tokens"]) / seconds,
        "rows_per_second": (len(lines) - 1) * run["batch"] / seconds,
        "median_step": statistics.median(steps),  # tokens/s too
        "first_step": first - lines[0]["seconds"],
        "reserving": float(reserved[1]),  # of it: the system gives the arena's pages
        "first_step_length": lines[0]["seconds"] / (seconds / (len(lines) - 1)),  # in steady steps
        "peak_bytes": peak,
        "cpu_seconds": 1000 * processor / lines[-1]["tokens"],  # with its start, which is short
        "losses": [line["loss"] for line in lines],
    }


def peer(options, base, data, run):
    """run as ours, and dense: its weights decoded once, the head for the loss's rows alone."""
    log = options.work / "bench-peer.log"
    command = [
        *(place.peers_python(), str(place.HERE / "bench_peer.py"), "--base", str(base), "--data", str(data)),
        *("--compute", run["dtype"], "--rows", run.get("rows") or "text"),
        *(["--checkpointing"] if run.get("recompute") else []),
        *(["--dense"] if run.get("dense") else []),
    ]
    for name in ("batch", "sequence", "steps", "threads"):
        command += ["--" + name, str(run[name])]
    with open(log, "w", encoding="utf-8") as output:
        process = subprocess.Popen(
            [*command, "--spawned", repr(time.time())],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment(run["threads"]),
        )
        peak, _ = finished(process, log)
    return {**json.loads(log.read_text(encoding="utf-8").splitlines()[-1]), "peak_bytes": peak}


def name_of(run, engine):
    words = [engine, ", ", run["dtype"]]
    if run.get("dense"):
        words.append(", decoded once")
    if run.get("recompute"):
        words.append(", checkpointing")
    return "".join(words)
