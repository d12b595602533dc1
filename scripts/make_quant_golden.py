#!/usr/bin/env python3
"""Writes tests/golden/quant_blocks.json: blocks of every dtype and their values.

Oracle: the numpy dequantiser of the gguf package (pip install gguf); for F16 and BF16 numpy itself.
Bytes are random but for the half-precision scales, which are random numbers of ordinary size: random
bits there would mostly give infinities and NaN.

    python3 scripts/make_quant_golden.py > tests/golden/quant_blocks.json
"""
import json
import sys

import numpy as np
from gguf import GGMLQuantizationType as T
from gguf import quants

ROWS = 2
# name: (type, values a block, bytes a block, byte offsets of the scales)
FORMATS = {
    "f32": (T.F32, 1, 4, []),
    "f16": (T.F16, 1, 2, [0]),
    "bf16": (T.BF16, 1, 2, []),
    "q8_0": (T.Q8_0, 32, 34, [0]),
    "q4_0": (T.Q4_0, 32, 18, [0]),
    "q4_1": (T.Q4_1, 32, 20, [0, 2]),
    "q4_K": (T.Q4_K, 256, 144, [0, 2]),
    "q5_K": (T.Q5_K, 256, 176, [0, 2]),
    "q6_K": (T.Q6_K, 256, 210, [208]),
}


def random_blocks(rng, name):
    kind, values, size, scales = FORMATS[name]
    cols = max(values, 32)
    if name == "f32":
        data = rng.standard_normal((ROWS, cols)).astype(np.float32).view(np.uint8)
    elif name == "bf16":
        halves = rng.standard_normal((ROWS, cols)).astype(np.float32).view(np.uint16)[:, 1::2]
        data = np.ascontiguousarray(halves).view(np.uint8)
    else:
        blocks = rng.integers(0, 256, (ROWS * cols // values, size), dtype=np.uint8)
        for at in scales:
            d = rng.standard_normal(len(blocks)).astype(np.float16) * np.float16(0.03)
            blocks[:, at:at + 2] = d.reshape(-1, 1).view(np.uint8)
        data = blocks.reshape(ROWS, -1)
    return cols, data, quants.dequantize(data, kind).astype(np.float32)


def main():
    rng = np.random.default_rng(20240607)
    out = {}
    for name in FORMATS:
        cols, data, values = random_blocks(rng, name)
        assert values.shape == (ROWS, cols), (name, values.shape)
        assert np.isfinite(values).all(), name
        out[name] = {
            "cols": cols,
            "bytes": data.reshape(-1).tolist(),
            "f32_bits": np.ascontiguousarray(values).view(np.uint32).reshape(-1).tolist(),
        }
    json.dump(out, sys.stdout, separators=(",", ":"))
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
