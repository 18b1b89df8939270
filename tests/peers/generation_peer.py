"""llama.cpp's side of tests/peers/generation: FILE THREADS STEPS, the prompt on stdin; one JSON object on stdout."""

import json
import sys
import time

from llama_cpp import Llama

path, threads, steps = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
model = Llama(path, n_ctx=2048, n_batch=512, n_threads=threads, n_threads_batch=threads, verbose=False)
prompt = model.tokenize(sys.stdin.read().encode(), add_bos=False, special=True)
for warm in (True, False):  # the first round brings the weights into memory and starts the threads
    model.reset()
    began = time.perf_counter()
    model.eval(prompt)
    token = model.sample(temp=0.0)
    prompt_seconds = time.perf_counter() - began
    began, spent = time.perf_counter(), time.process_time()
    for _ in range(steps):
        model.eval([token])
        token = model.sample(temp=0.0)
    seconds, spent = time.perf_counter() - began, time.process_time() - spent
print(
    json.dumps(
        {
            "prompt_tokens": len(prompt),
            "prompt": len(prompt) / prompt_seconds,
            "steps": steps / seconds,
            "cpu_ms": 1000 * spent / steps,
        }
    )
)
