"""FLOP/s of the peers' products of two large matrices, for tools/bench; the last line of output is a JSON object. The
environment may narrow their instructions (ONEDNN_MAX_CPU_ISA, MKL_ENABLE_INSTRUCTIONS, OPENBLAS_CORETYPE)."""

import argparse
import json
import time

import numpy
import torch

parser = argparse.ArgumentParser()
parser.add_argument("--threads", type=int, required=True)
parser.add_argument("--size", type=int, nargs=3, default=(2048, 2048, 2048), metavar=("M", "N", "K"))
parser.add_argument("--types", nargs="+", choices=("bf16", "fp32"), default=("bf16", "fp32"))
parser.add_argument("--runs", type=int, default=5)
options = parser.parse_args()
torch.set_num_threads(options.threads)
m, n, k = options.size


# Alone a thread has a clock of its own, on which other programs cost nothing.
now = time.process_time if options.threads == 1 else time.perf_counter


def rate(product):
    product()
    best = float("inf")
    for _ in range(options.runs):
        began = now()
        product()
        best = min(best, now() - began)
    return 2 * m * n * k / best


torch.manual_seed(0)
x, w = torch.randn(m, k), torch.randn(n, k)
result = {}
with torch.no_grad():
    if "bf16" in options.types:
        x16, w16 = x.bfloat16(), w.bfloat16()
        result["bf16 torch"] = rate(lambda: torch.matmul(x16, w16.T))
    if "fp32" in options.types:
        result["fp32 torch"] = rate(lambda: torch.matmul(x, w.T))
        one, other = x.to_mkldnn(), w.to_mkldnn()
        result["fp32 oneDNN"] = rate(lambda: torch.nn.functional.linear(one, other))
        a, b = x.numpy(), numpy.ascontiguousarray(w.numpy().T)
        result["fp32 OpenBLAS"] = rate(lambda: a @ b)
print(json.dumps(result))
