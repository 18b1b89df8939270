"""One run of the peer for tools/bench; its last line of output is a JSON object."""

import argparse
import json
import time
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("--base", type=Path, required=True)
parser.add_argument("--data", required=True)
parser.add_argument("--rows", choices=("text", "short"), default="text")
parser.add_argument("--compute", choices=("fp32", "bf16"), required=True)
parser.add_argument("--checkpointing", action="store_true")
parser.add_argument("--dense", action="store_true", help="decode the weights once, into fp32")
for name in ("batch", "sequence", "steps", "threads"):
    parser.add_argument("--" + name, type=int, required=True)
parser.add_argument("--spawned", type=float, required=True, help="time.time() when this process was made")
options = parser.parse_args()

import torch  # noqa: E402

import peer  # noqa: E402

torch.set_num_threads(options.threads)
tok = peer.tokenizer(options.base)


def text_rows():
    """Full rows of text as batches; the model's own loss, on every token."""
    tokens = []
    for line in open(options.data, encoding="utf-8"):
        tokens += tok(json.loads(line)["text"], add_special_tokens=False)["input_ids"]
    length = options.sequence
    rows = [tokens[i : i + length] for i in range(0, len(tokens) - length + 1, length)]

    def step(model, number):
        ids = torch.tensor([rows[(number * options.batch + i) % len(rows)] for i in range(options.batch)])
        return model(input_ids=ids, labels=ids).loss, ids.numel()

    return step


def short_rows():
    """Rows of messages, padded to the longest of their batch; the head and the loss for the answers' tokens alone."""
    rows = peer.answer_rows(options.data, tok)
    assert max(len(ids) for ids, _ in rows) <= options.sequence

    def step(model, number):
        batch = [rows[(number * options.batch + i) % len(rows)] for i in range(options.batch)]
        total, count = peer.loss_sum(model, batch)
        return total / count, sum(len(ids) for ids, _ in batch)

    return step


step = short_rows() if options.rows == "short" else text_rows()
base = peer.dense_base(options.base) if options.dense else peer.load_base(options.base, options.checkpointing)
model = peer.new_adapter(base).train()
values = [p for p in model.parameters() if p.requires_grad]
optimizer = torch.optim.AdamW(values, lr=2e-4, weight_decay=0.0)

first_step = time.time() - options.spawned
seconds, processor, losses, tokens = [], [], [], []
for number in range(options.steps):
    began, used = time.perf_counter(), time.process_time()
    with peer.precision(options.compute):
        loss, count = step(model, number)
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(values, 1.0)
    optimizer.step()
    seconds.append(time.perf_counter() - began)
    processor.append(time.process_time() - used)
    losses.append(loss.item())
    tokens.append(count)
result = {
    "tokens_per_second": sum(tokens[1:]) / sum(seconds[1:]),
    "rows_per_second": options.batch * (options.steps - 1) / sum(seconds[1:]),
    "cpu_seconds": 1000 * sum(processor[1:]) / sum(tokens[1:]),
    "first_step": first_step,
    "losses": losses,
}
print(json.dumps(result))
