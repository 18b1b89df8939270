"""Where things are and how a program of ours is run. Only the standard library: tools/bench measures
children's peak memory, and a child's figure begins with its parent's."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
MODEL_FILE = "smollm2-135m-instruct-q4_1.gguf"


def die(code, message):
    print(f"{Path(sys.argv[0]).name}: {message}", file=sys.stderr)
    sys.exit(code)


def progress(message):
    """What is being done now, for whoever waits; not part of the figures."""
    print(time.strftime("%H:%M:%S"), message, file=sys.stderr, flush=True)


def python_of(variable, folder, what, setup):
    """The interpreter of an environment that `setup` made in `folder`, or that `variable` names."""
    venv = Path(os.environ.get(variable, ROOT / folder))
    python = venv / "bin" / "python"
    if not python.exists():
        die(2, f"{venv}: {what} not installed; run {setup}, or name an environment with {variable}")
    return str(python)


def peers_python():
    return python_of("QLORA_PEERS_VENV", ".peers", "the peers are", "tests/peers/setup")


def llama_python():
    return python_of("QLORA_LLAMA_VENV", ".peers-llama", "llama.cpp is", "tests/peers/setup --llama")


def enter_peers():
    """Runs this script again inside the peers' environment."""
    python = peers_python()
    if os.environ.get("QLORA_PEERS_INSIDE") != "1":
        os.execve(python, [python, *sys.argv], {**os.environ, "QLORA_PEERS_INSIDE": "1"})


def absolute(text):
    return Path(text).resolve()


def add_options(parser):
    parser.add_argument(
        "--gguf", type=absolute, help="SmolLM2-135M-Instruct as a GGUF [the one tools/quickstart keeps]"
    )
    parser.add_argument(
        "--bin",
        type=absolute,
        default=ROOT / "build/release/bin",
        help="folder of our programs [%(default)s]",
    )
    parser.add_argument(
        "--work",
        type=absolute,
        default=ROOT / "build/peers",
        help="models and runs are kept here [%(default)s]",
    )
    parser.add_argument("--threads", type=int, default=2, help="threads of each engine [%(default)s]")


def model_file(given):
    cache = os.environ.get("XDG_CACHE_HOME", "")
    cache = Path(cache) if cache.startswith("/") else Path.home() / ".cache"
    path = given or cache / "qlora" / MODEL_FILE
    if not path.is_file():
        die(
            3,
            f"{path}: no such file; run tools/quickstart --steps 1, which gets it, or give --gguf FILE",
        )
    return path


def ours(options, program, *arguments, **keywords):
    """One of our programs, run to its end; its output is shown only when it fails."""
    done = subprocess.run(
        [str(options.bin / program), *map(str, arguments)], capture_output=True, text=True, **keywords
    )
    if done.returncode:
        print(done.stdout, done.stderr, sep="\n", file=sys.stderr)
        die(1, f"{program} ended with {done.returncode}")
    return done.stdout


def bases(options):
    """(plain, nf4): the GGUF rounded to bf16 as a folder in fp32, and what qlora-quantize makes of it."""
    if not (options.bin / "qlora-train").is_file():
        die(2, f"{options.bin}: no programs here; run tools/build, or give --bin FOLDER")
    gguf = model_file(options.gguf)
    key = hashlib.sha256(gguf.read_bytes()).hexdigest()[:16]
    plain, nf4 = options.work / f"plain-{key}", options.work / f"nf4-{key}"
    options.work.mkdir(parents=True, exist_ok=True)
    if not plain.exists():
        # Our tokenizer files serve both sides: transformers cannot always rebuild one from a GGUF.
        partial, text = options.work / "partial", options.work / "text"
        shutil.rmtree(partial, ignore_errors=True)
        ours(options, "qlora-quantize", "--model", gguf, "--output-dir", text, "--overwrite-output-dir")
        subprocess.run([peers_python(), str(HERE / "plain_folder.py"), str(gguf), str(partial)], check=True)
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            shutil.copy(text / name, partial / name)
        shutil.rmtree(text)
        partial.rename(plain)
    ours(
        options,
        "qlora-quantize",
        "--model",
        plain,
        "--output-dir",
        nf4,
        "--bits",
        4,
        "--quant-type",
        "nf4",
        "--double-quant",
        "--overwrite-output-dir",
    )
    return plain, nf4


def metrics(folder):
    with open(folder / "metrics.jsonl", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]
