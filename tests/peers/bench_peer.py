"""One run of the peer for tools/bench; its last line of output is a JSON object."""

import argparse
import json
import time
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("--base", type=Path, required=True)
parser.add_argument("--data", required=True)
parser.add_argument("--compute", choices=("fp32", "bf16"), required=True)
parser.add_argument("--checkpointing", action="store_true")
for name in ("batch", "sequence", "steps", "threads"):
    parser.add_argument("--" + name, type=int, required=True)
parser.add_argument("--spawned", type=float, required=True, help="time.time() when this process was made")
options = parser.parse_args()

import torch  # noqa: E402

import peer  # noqa: E402

torch.set_num_threads(options.threads)
tok = peer.tokenizer(options.base)
tokens = []
for line in open(options.data, encoding="utf-8"):
    tokens += tok(json.loads(line)["text"], add_special_tokens=False)["input_ids"]
rows = [
    tokens[i : i + options.sequence] for i in range(0, len(tokens) - options.sequence + 1, options.sequence)
]
model = peer.new_adapter(peer.load_base(options.base, options.checkpointing)).train()
values = [p for p in model.parameters() if p.requires_grad]
optimizer = torch.optim.AdamW(values, lr=2e-4, weight_decay=0.0)

first_step = time.time() - options.spawned
seconds, processor, losses = [], [], []
for step in range(options.steps):
    began, used = time.perf_counter(), time.process_time()
    ids = torch.tensor([rows[(step * options.batch + i) % len(rows)] for i in range(options.batch)])
    with peer.precision(options.compute):
        loss = model(input_ids=ids, labels=ids).loss
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(values, 1.0)
    optimizer.step()
    seconds.append(time.perf_counter() - began)
    processor.append(time.process_time() - used)
    losses.append(loss.item())
tokens = options.batch * options.sequence * (options.steps - 1)
result = {
    "tokens_per_second": tokens / sum(seconds[1:]),
    "cpu_seconds": 1000 * sum(processor[1:]) / tokens,
    "first_step": first_step,
    "losses": losses,
}
print(json.dumps(result))
