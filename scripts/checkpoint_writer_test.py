#!/usr/bin/env python3
"""Tests of gguf_blocks, checkpoint_writer and make_random_checkpoint: python3 scripts/checkpoint_writer_test.py"""
import contextlib
import hashlib
import io
import json
import math
import struct
import tempfile
import unittest
from dataclasses import replace
from pathlib import Path

import numpy as np

import checkpoint_writer as writer
import gguf_blocks
import make_random_checkpoint

GOLDEN = Path(__file__).resolve().parent.parent / "tests" / "golden" / "tiny"
SMALL = ["--layers", "4", "--attention", "2", "--num-experts", "5", "--top-k", "2", "--vocab", "320"]


def run(*arguments):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        make_random_checkpoint.main([str(a) for a in arguments])
    return out.getvalue()


def read_gguf(path):
    """Metadata and tensors (name -> (dims, type id, bytes)) of a GGUF: an independent, minimal reader."""
    data, at = path.read_bytes(), 0

    def take(form):
        nonlocal at
        (value,) = struct.unpack_from("<" + form, data, at)
        at += struct.calcsize(form)
        return value

    def text():
        nonlocal at
        length = take("Q")
        at += length
        return data[at - length:at].decode()

    def value(kind):
        if kind == 9:
            inner, count = take("I"), take("Q")
            return [value(inner) for _ in range(count)]
        return text() if kind == 8 else take({4: "I", 5: "i", 6: "f", 7: "?"}[kind])

    assert take("I") == 0x46554747 and take("I") == 3
    tensor_count, metadata_count = take("Q"), take("Q")
    metadata = {}
    for _ in range(metadata_count):
        key = text()
        metadata[key] = value(take("I"))
    infos = []
    for _ in range(tensor_count):
        name, rank = text(), take("I")
        infos.append((name, [take("Q") for _ in range(rank)], take("I"), take("Q")))
    base = at + -at % 32
    tensors = {}
    for name, dims, kind, offset in infos:
        form = next(f for f in gguf_blocks.FORMATS.values() if f.type_id == kind)
        size = math.prod(dims) // form.size * form.bytes
        assert offset % 32 == 0 and base + offset + size <= len(data)
        tensors[name] = (dims, form.name, data[base + offset:base + offset + size])
    return metadata, tensors


class Blocks(unittest.TestCase):
    # Largest error of a value, in units of the largest magnitude in its 256: from half a step (finer at the extremes) to
    # a step and a half where the opposite extreme is clipped and the sub-block scale is rounded too.
    BOUNDS = {"q8_0": 0.6 / 127, "q4_0": 1.1 / 8, "q4_1": 1.1 / 15, "q4_k": 1.6 / 15, "q5_k": 1.8 / 31, "q6_k": 1.5 / 32,
              "f32": 0, "f16": 1e-3, "bf16": 1 / 256}

    def test_round_trip_error(self):
        values = writer.RandomSource(5).read(writer.Plain("x", (64, 256), 1.0), 0, 64 * 256)
        magnitudes = (10.0 ** np.arange(-3, 3).repeat(11)[:64, None]).astype(np.float32)
        values = (values.reshape(64, 256) * magnitudes).reshape(-1)
        for name, form in gguf_blocks.FORMATS.items():
            data = gguf_blocks.encode(values, name)
            self.assertEqual(len(data), values.size // form.size * form.bytes)
            error = np.abs(gguf_blocks.decode(data, name) - values).reshape(64, 256).max(axis=1)
            largest = np.abs(values).reshape(64, 256).max(axis=1)
            self.assertLessEqual((error / largest).max(), self.BOUNDS[name], name)

    def test_constant_blocks_and_zeros(self):
        for name in gguf_blocks.ENCODERS:
            for constant in (0.0, 1.0, -1.0):
                values = np.full(256, constant, dtype=np.float32)
                got = gguf_blocks.decode(gguf_blocks.encode(values, name), name)
                self.assertLess(np.abs(got - constant).max(), 2e-3, (name, constant))

    def test_six_bit_scales(self):
        six_bits = np.arange(64, dtype=np.uint8).reshape(8, 8)
        scales, mins = writer.gguf_blocks.unpack_scales(gguf_blocks.pack_scales(six_bits, six_bits[::-1]))
        np.testing.assert_array_equal(scales, six_bits)
        np.testing.assert_array_equal(mins, six_bits[::-1])

    def test_drawn_blocks_have_the_deviation(self):
        for name in gguf_blocks.ENCODERS:
            take = writer.RandomSource(1).byte_stream(name)
            values = gguf_blocks.decode(gguf_blocks.draw(take, 4000, name, 0.25), name)
            self.assertAlmostEqual(values.std(), 0.25, delta=0.02)
            self.assertAlmostEqual(values.mean(), 0, delta=0.02)

    def test_bf16_rounds_to_even(self):
        bits = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0x3F807FFF], dtype=np.uint32)
        self.assertEqual(gguf_blocks.f32_to_bf16(bits.view(np.float32)).tolist(), [0x3F80, 0x3F82, 0x3F81, 0x3F80])


class Sizes(unittest.TestCase):
    def test_published_models(self):
        """Parameter counts and tensor bytes of released files."""
        for preset, count in {"24b": 23_843_661_440, "1.2b": 1_170_340_608, "350m": 354_483_968}.items():
            self.assertEqual(writer.parameter_count(writer.PRESETS[preset]), count)
        for quant, size in {"q4_0": 13_465_000_448, "q4_k_m": 14_413_068_800, "q5_k_m": 16_916_412_928,
                            "q6_k": 19_576_216_064, "q8_0": 25_349_560_832, "f16": 47_697_992_192}.items():
            tensors = list(writer.gguf_tensors(writer.PRESETS["24b"], quant))
            self.assertEqual((len(tensors), sum(t.bytes for t in tensors)), (428, size), quant)
        for preset, count in {"24b": 7610, "8b": 2302, "1.2b": 148}.items():
            self.assertEqual(len(list(writer.hf_tensors(writer.PRESETS[preset], "bf16"))), count)

    def test_dry_run_of_24b(self):
        out = run("--preset", "24b", "--format", "gguf", "--quant", "q4_0", "--dry-run")
        self.assertTrue(out.endswith("428 tensors, 13465000448 tensor bytes, 23843661440 parameters\n"))

    def test_adjusted_ff(self):
        for ff, real in {6656: 4608, 10240: 6912, 12288: 8192, 700: 512}.items():
            self.assertEqual(replace(writer.PRESETS["1.2b"], ff=ff).real_ff, real)
        self.assertEqual(replace(writer.PRESETS["1.2b"], ff=10752, auto_adjust_ff=False).real_ff, 10752)


class Values(unittest.TestCase):
    def test_generator(self):
        """Fixed words: the sequence must never change, golden files depend on it. The first three are the published
        first outputs of SplitMix64 for seed 0."""
        self.assertEqual([hex(w) for w in writer.random_words(0, 0, 3)],
                         ["0xe220a8397b1dcdaf", "0x6e789e6aa1b965f4", "0x6c45d188009454f"])
        plain = writer.Plain("x", (100_000,), 0.5, 1.0)
        values = writer.RandomSource(1).read(plain, 0, plain.count)
        self.assertAlmostEqual(values.mean(), 1.0, delta=0.01)
        self.assertAlmostEqual(values.std(), 0.5, delta=0.01)
        np.testing.assert_array_equal(values[777:999], writer.RandomSource(1).read(plain, 777, 222))

    def test_golden_checkpoints_are_reproduced(self):
        """The checkpoints that the C++ golden tests regenerate have the recorded bytes, under this numpy too."""
        for path in sorted(GOLDEN.glob("*.json")):
            case = json.loads(path.read_text())
            with tempfile.TemporaryDirectory() as folder:
                run(*case["make_random_checkpoint_arguments"], "--out", folder)
                digest = hashlib.sha256(Path(folder, "model.safetensors").read_bytes()).hexdigest()
            self.assertEqual(digest, case["model_safetensors_sha256"], path.name)


class Files(unittest.TestCase):
    def setUp(self):
        self.scratch = tempfile.TemporaryDirectory()
        self.addCleanup(self.scratch.cleanup)
        self.folder = Path(self.scratch.name)

    def values_of(self, folder):
        shape, source = writer.shape_of_folder(folder), writer.FolderSource(folder)
        plain = [p for p in writer.plain_ends(shape) if p]
        for layer in range(shape.layers):
            for value in writer.plain_layer(shape, layer).values():
                plain += value if isinstance(value, list) else [value]
        return {p.name: source.read(p, 0, p.count) for p in plain}

    def assert_same_values(self, one, other):
        self.assertEqual(one.keys(), other.keys())
        for name in one:
            np.testing.assert_array_equal(one[name], other[name], name)

    def test_layouts_hold_the_same_values(self):
        base = ["--preset", "tiny-moe", *SMALL, "--untied"]
        run(*base, "--out", self.folder / "a")
        run(*base, "--experts", "packed", "--shard-mb", "2", "--out", self.folder / "b")
        self.assertGreater(len(list((self.folder / "b").glob("model-*-of-*.safetensors"))), 2)
        self.assert_same_values(self.values_of(self.folder / "a"), self.values_of(self.folder / "b"))

    def test_shape_survives_config_json(self):
        for preset in writer.PRESETS:
            for style in ("top-level", "nested"):
                shape = writer.PRESETS[preset]
                (self.folder / "config.json").write_text(json.dumps(writer.config_json(shape, "bf16", style)))
                self.assertEqual(writer.shape_of_folder(self.folder), shape)

    def test_converted_folder_equals_the_source(self):
        base = ["--preset", "tiny-moe", *SMALL]
        run(*base, "--dtype", "f32", "--out", self.folder / "hf")
        run("--convert", self.folder / "hf", "--quant", "f32", "--out", self.folder / "converted.gguf")
        run(*base, "--format", "gguf", "--quant", "f32", "--out", self.folder / "direct.gguf")
        hf = self.values_of(self.folder / "hf")
        (meta, ours), (_, direct) = (read_gguf(self.folder / f"{n}.gguf") for n in ("converted", "direct"))
        self.assertEqual(ours, direct)
        stack = gguf_blocks.decode(ours["blk.3.ffn_down_exps.weight"][2], "f32").reshape(5, 256, 256)
        np.testing.assert_array_equal(stack[4].reshape(-1), hf["model.layers.3.feed_forward.experts.4.w2.weight"])
        self.assertEqual(ours["blk.3.ffn_gate_exps.weight"][0], [256, 256, 5])
        self.assertEqual(ours["blk.0.shortconv.conv.weight"][0], [3, 256])
        self.assertEqual(meta["lfm2moe.attention.head_count_kv"], [0, 0, 2, 0])
        self.assertEqual(meta["lfm2moe.leading_dense_block_count"], 2)
        self.assertEqual(len(meta["tokenizer.ggml.tokens"]), 320)
        self.assertEqual(meta["tokenizer.ggml.tokens"][7], "<|im_end|>")

    def test_quantised_gguf_is_near_the_values(self):
        run("--preset", "tiny-moe", *SMALL, "--dtype", "f32", "--out", self.folder / "hf")
        hf = self.values_of(self.folder / "hf")
        want = hf["model.layers.0.conv.in_proj.weight"]
        for quant in writer.QUANTS:
            path = self.folder / f"{quant}.gguf"
            run("--preset", "tiny-moe", *SMALL, "--format", "gguf", "--quant", quant, "--out", path)
            _, tensors = read_gguf(path)
            dims, form, data = tensors["blk.0.shortconv.in_proj.weight"]
            self.assertEqual((dims, form), ([256, 768], writer.MIXES.get(quant, quant)))
            error = gguf_blocks.decode(data, form) - want
            self.assertLess(np.linalg.norm(error) / np.linalg.norm(want), 0.1, quant)
            for name in ("blk.3.ffn_gate_inp.weight", "blk.3.exp_probs_b.bias", "blk.0.shortconv.conv.weight"):
                self.assertEqual(tensors[name][1], "f32")

    def test_narrow_experts_fall_back_to_q8_0(self):
        path = self.folder / "narrow.gguf"
        run("--preset", "tiny-moe", *SMALL, "--expert-ff", "32", "--format", "gguf", "--quant", "q4_k", "--out", path)
        _, tensors = read_gguf(path)
        self.assertEqual([tensors[f"blk.3.ffn_{n}_exps.weight"][1] for n in ("gate", "down")], ["q4_k", "q8_0"])

    def test_dense_gguf(self):
        path = self.folder / "dense.gguf"
        run("--preset", "tiny-dense", "--format", "gguf", "--quant", "q8_0", "--vocab", "320", "--untied", "--out", path)
        meta, tensors = read_gguf(path)
        self.assertEqual((meta["general.architecture"], meta["lfm2.feed_forward_length"]), ("lfm2", 512))
        self.assertEqual(tensors["output.weight"][0], [256, 320])
        self.assertNotIn("lfm2.expert_count", meta)

    def test_drawn_blocks(self):
        path = self.folder / "drawn.gguf"
        run("--preset", "tiny-moe", *SMALL, "--format", "gguf", "--quant", "q4_k_m", "--draw-blocks", "--out", path)
        _, tensors = read_gguf(path)
        values = gguf_blocks.decode(tensors["blk.0.shortconv.in_proj.weight"][2], "q4_k")
        self.assertAlmostEqual(values.std(), 1 / 16, delta=0.005)


if __name__ == "__main__":
    unittest.main()
