#!/usr/bin/env python3
"""Writes tests/golden/sampling_cases.json: what Hugging Face Transformers' logits processors make of
small rows of logits. Needs torch and transformers; the build and the tests do not.

Each case holds the logits, the parameters, the tokens of prompt and output, and the probabilities
after bias, penalties, temperature, top_k, top_p and min_p, 0 for tokens that are out. Presence and
frequency penalties, which Transformers does not have, follow OpenAI's published formula. A case whose
top_p or min_p boundary lies within 1e-5 of a token's edge is drawn again: there the last bit of a sum
decides, and Transformers does not sum in a defined order.
"""
import json
import pathlib
import sys

import torch
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

V = 67  # not a multiple of any vector width

PARAMS = [
    {},
    {"temperature": 0.7},
    {"temperature": 1.7},
    {"top_k": 1},
    {"top_k": 5},
    {"top_k": 66, "temperature": 0.5},
    {"top_p": 0.9},
    {"top_p": 0.3, "temperature": 1.3},
    {"top_p": 0.999},
    {"min_p": 0.05},
    {"min_p": 0.5, "temperature": 1.5},
    {"top_k": 20, "top_p": 0.8},
    {"top_k": 20, "top_p": 0.8, "min_p": 0.1, "temperature": 0.8},
    {"top_p": 0.7, "min_p": 0.02, "temperature": 2.0},
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 0.6},
    {"presence_penalty": 1.5},
    {"frequency_penalty": 0.8},
    {"repetition_penalty": 1.05, "presence_penalty": -0.5, "frequency_penalty": 0.3,
     "temperature": 0.1, "top_k": 50},
    {"logit_bias": {"3": 4.5, "11": -100.0}},
    {"logit_bias": {"5": 2.0, "60": -1.5}, "repetition_penalty": 1.2, "top_p": 0.95},
    {"temperature": 0.3, "min_p": 0.15, "repetition_penalty": 1.05},
]


def process(logits, params, prompt, output):
    ids = torch.tensor([prompt + output])
    x = torch.tensor([logits], dtype=torch.float32)
    bias = params.get("logit_bias")
    if bias:
        x = SequenceBiasLogitsProcessor([[[int(t)], b] for t, b in bias.items()])(ids, x)
    if params.get("repetition_penalty", 1.0) != 1.0:
        x = RepetitionPenaltyLogitsProcessor(params["repetition_penalty"])(ids, x)
    counts = torch.bincount(torch.tensor(output, dtype=torch.int64), minlength=V)
    x = x - params.get("frequency_penalty", 0.0) * counts
    x = x - params.get("presence_penalty", 0.0) * (counts > 0)
    x = TemperatureLogitsWarper(params.get("temperature", 1.0))(ids, x)
    if params.get("top_k", 0) > 0:
        x = TopKLogitsWarper(params["top_k"])(ids, x)
    edge = 1.0
    if params.get("top_p", 1.0) < 1.0:
        mass = torch.softmax(x.double(), -1)[0].sort(descending=True).values.cumsum(0)
        edge = min(edge, (mass - params["top_p"]).abs().min().item())
        x = TopPLogitsWarper(params["top_p"])(ids, x)
    if params.get("min_p", 0.0) > 0.0:
        p = torch.softmax(x.double(), -1)[0]
        edge = min(edge, (p / p.max() - params["min_p"]).abs().min().item())
        x = MinPLogitsWarper(params["min_p"])(ids, x)
    return torch.softmax(x.double(), -1)[0].tolist(), edge


def main():
    generator = torch.Generator().manual_seed(20240901)
    cases = []
    for i, params in enumerate(PARAMS):
        while True:
            spread = [1.0, 3.0, 8.0][i % 3]
            logits = (torch.randn(V, generator=generator) * spread).tolist()
            if i % 4 == 1:  # ties, also between likely tokens
                logits = [round(x) * 1.0 for x in logits]
            tokens = torch.randint(0, V, (24,), generator=generator).tolist()
            prompt, output = tokens[:12], tokens[12:] + tokens[12:16]
            probabilities, edge = process(logits, params, prompt, output)
            ties = len(set(logits)) < V
            if edge > 1e-5 and not (ties and params.get("top_p", 1.0) < 1.0):
                break
            if ties:  # Transformers leaves open which of equal tokens top_p keeps
                i += 1
        cases.append({
            "params": params, "logits": logits, "prompt": prompt, "output": output,
            "probabilities": [float(f"{p:.9g}") for p in probabilities],
        })
    target = pathlib.Path(__file__).resolve().parent.parent / "tests/golden/sampling_cases.json"
    text = ",\n".join(json.dumps(case) for case in cases)
    target.write_text(f'{{"vocab": {V}, "cases": [\n{text}\n]}}\n')
    print(f"{target}: {len(cases)} cases, {target.stat().st_size} bytes", file=sys.stderr)


if __name__ == "__main__":
    main()
