#!/usr/bin/env python3
"""Writes a small random model twice: with matrices of one format, and in float32 with the values that gguf_blocks.py
reads from those matrices. Two GGUF files, quantised.gguf and values.gguf, in a new folder.

Rows are 256 values long, a whole block of every format. Every expert takes every token: among fewer a router near a tie
would turn a small difference into a large one.
"""
import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "scripts"))
import checkpoint_writer as writer  # noqa: E402
import gguf_blocks  # noqa: E402

SHAPE = replace(writer.PRESETS["tiny-moe"], layers=3, attention=(1,), dense_layers=1, experts=3, top_k=3, ff=256,
                vocab=320)


def check_decoder(name):
    """gguf_blocks against the values that the gguf package gave for random blocks."""
    golden = json.loads((ROOT / "tests/golden/quant_blocks.json").read_text(encoding="utf-8"))
    case = {key.lower(): value for key, value in golden.items()}[name]
    got = gguf_blocks.decode(bytes(case["bytes"]), name)
    np.testing.assert_array_equal(got.view(np.uint32), np.array(case["f32_bits"], dtype=np.uint32), name)


class ReadBack:
    """The values of a source after a stay in the formats that the tensors of a file have."""

    def __init__(self, source, tensors):
        self.source = source
        self.formats = {plain.name: t.format for t in tensors for plain in t.parts}

    def read(self, plain, start, count):
        form = self.formats[plain.name]
        return gguf_blocks.decode(gguf_blocks.encode(self.source.read(plain, start, count), form), form)


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--quant", choices=sorted(gguf_blocks.FORMATS.keys() - {"f32"}), required=True)
    p.add_argument("--out", type=Path, required=True)
    args = p.parse_args()
    check_decoder(args.quant)
    source, tokenizer = writer.RandomSource(9), writer.Tokenizer.builtin()
    tensors = list(writer.gguf_tensors(SHAPE, args.quant, args.quant))
    quantised = {t.format for t in tensors if len(t.shape) > 1} - {"f32"}
    assert quantised == {args.quant}, quantised
    writer.write_gguf(args.out / "quantised.gguf", SHAPE, source, args.quant, args.quant, tokenizer, "quantised")
    writer.write_gguf(args.out / "values.gguf", SHAPE, ReadBack(source, tensors), "f32", "f32", tokenizer, "values")


if __name__ == "__main__":
    main()
