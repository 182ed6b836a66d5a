"""Scores by llama.cpp, in the Python that has it: `python llama_child.py MODEL LORA < questions > scores`.

Each line of the input is a question as token ids, {"prefix": [...], "continuations": [[...], ...]}; each of the output
has the sums of the continuations' log-probabilities.
"""

import json
import sys

import llama_cpp
import numpy as np


def log_probability(model: llama_cpp.Llama, prefix: list[int], continuation: list[int]) -> float:
    model.reset()
    model.eval(prefix + continuation)
    logits = np.asarray(model.scores[len(prefix) - 1 : len(prefix) + len(continuation) - 1], dtype=np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return float(logits[range(len(continuation)), continuation].sum())


def main(model: str, lora: str) -> None:
    loaded = llama_cpp.Llama(model, lora_path=lora or None, logits_all=True, n_ctx=512, n_threads=1, verbose=False)
    for line in sys.stdin:
        asked = json.loads(line)
        print(json.dumps([log_probability(loaded, asked["prefix"], c) for c in asked["continuations"]]))


if __name__ == "__main__":
    main(*sys.argv[1:])
