"""Checkpoints of both formats with one thing broken each, made from an intact model by changing bytes.

FOLDERS and FILES list (name, damage, words): damage(path) breaks a fresh copy of a Hugging Face folder or of
a GGUF file in place; the words must be in the one line that refuses it. Standard library only.
"""

import json
import os
import pathlib
import struct

WEIGHTS, CONFIG, TOKENIZER = "model.safetensors", "config.json", "tokenizer.json"
INDEX, SHARD = "model.safetensors.index.json", "model-00001-of-00001.safetensors"


# --- bytes and JSON ---------------------------------------------------------------------------------------

def write(name: str, content: bytes):
    return lambda folder: (folder / name).write_bytes(content)


def remove(name: str):
    return lambda folder: (folder / name).unlink()


def cut(name: str, keep: int):
    """Keeps so many bytes; a negative number takes them from the end."""
    def damage(folder: pathlib.Path):
        size = (folder / name).stat().st_size
        os.truncate(folder / name, keep if keep >= 0 else size + keep)
    return damage


def edit(name: str, change):
    """change(object) alters a JSON file in place."""
    def damage(folder: pathlib.Path):
        content = json.loads((folder / name).read_text())
        change(content)
        (folder / name).write_text(json.dumps(content))
    return damage


def config(**fields):
    """Sets fields of config.json; None removes one."""
    def change(content: dict):
        for field, value in fields.items():
            content.pop(field, None)
            if value is not None:
                content[field] = value
    return edit(CONFIG, change)


# --- safetensors: u64 length, JSON header, data -----------------------------------------------------------

def header_of(content: bytes) -> tuple[dict, bytes]:
    length = struct.unpack_from("<Q", content)[0]
    return json.loads(content[8:8 + length]), content[8 + length:]


def tensors(change):
    """change(header, data) gives the new data; the header is changed in place, its offsets are not made good."""
    def damage(folder: pathlib.Path):
        header, data = header_of((folder / WEIGHTS).read_bytes())
        data = change(header, data)
        text = json.dumps(header).encode()
        (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + data)
    return damage


def entry(name: str, **fields):
    """Sets fields of one tensor's entry."""
    def change(header: dict, data: bytes) -> bytes:
        header[name].update(fields)
        return data
    return tensors(change)


def drop_last(header: dict, data: bytes) -> bytes:
    """The file without its last tensor, otherwise in order."""
    del header["__metadata__"]
    name = max(header, key=lambda tensor: header[tensor]["data_offsets"][1])
    return data[:header.pop(name)["data_offsets"][0]]


def add_surplus(header: dict, data: bytes) -> bytes:
    header["model.layers.0.mamba.weight"] = {
        "dtype": "BF16", "shape": [2, 2], "data_offsets": [len(data), len(data) + 8]}
    return data + bytes(8)


def leave_gap(header: dict, data: bytes) -> bytes:
    name = max((n for n in header if n != "__metadata__"), key=lambda n: header[n]["data_offsets"][1])
    header[name]["data_offsets"] = [offset + 8 for offset in header[name]["data_offsets"]]
    return data + bytes(8)


def overlap(header: dict, data: bytes) -> bytes:
    first, second = sorted((n for n in header if n != "__metadata__" and header[n]["shape"] == [256]),
                           key=lambda n: header[n]["data_offsets"])[:2]
    header[second]["data_offsets"] = header[first]["data_offsets"]
    return data


def transpose(name: str):
    def change(header: dict, data: bytes) -> bytes:
        header[name]["shape"].reverse()
        return data
    return tensors(change)


def repeat_a_tensor(folder: pathlib.Path):
    content = (folder / WEIGHTS).read_bytes()
    header, data = header_of(content)
    header.pop("__metadata__", None)
    name, value = next(iter(header.items()))
    text = json.dumps(header)[:-1].encode() + b", " + json.dumps({name: value})[1:].encode()
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + data)


def header_length(length: int):
    def damage(folder: pathlib.Path):
        with open(folder / WEIGHTS, "r+b") as file:
            file.write(struct.pack("<Q", length))
    return damage


def sharded(change=lambda index: None):
    """The same weights as one shard and an index, then change(index["weight_map"])."""
    def damage(folder: pathlib.Path):
        header, _ = header_of((folder / WEIGHTS).read_bytes())
        header.pop("__metadata__", None)
        (folder / WEIGHTS).rename(folder / SHARD)
        index = {"metadata": {}, "weight_map": {name: SHARD for name in header}}
        change(index["weight_map"])
        (folder / INDEX).write_text(json.dumps(index))
    return damage


def then(*damages):
    def damage(path: pathlib.Path):
        for one in damages:
            one(path)
    return damage


def drop_layer(content: dict):
    content["layer_types"].pop()


NORM, GATE = "model.embedding_norm.weight", "model.layers.2.feed_forward.gate.weight"
LAST = "model.layers.9.operator_norm.weight"  # in the order of the file

FOLDERS = [
    # model.safetensors
    ("weights missing", remove(WEIGHTS), [WEIGHTS, INDEX]),
    ("weights empty", write(WEIGHTS, b""), [WEIGHTS, "is empty"]),
    ("weights a directory", then(remove(WEIGHTS), lambda f: (f / WEIGHTS).mkdir()), [WEIGHTS, "directory"]),
    ("weights of four bytes", write(WEIGHTS, b"\x08\0\0\0"), [WEIGHTS, "too few"]),
    ("Git LFS pointer", write(WEIGHTS, b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"), [WEIGHTS]),
    ("header cut", cut(WEIGHTS, 1000), [WEIGHTS, "header", "cut"]),
    ("header length of all ones", header_length(2**64 - 1), [WEIGHTS, "header", "limit"]),
    ("header length too small", header_length(100), [WEIGHTS, "not valid JSON"]),
    ("header length zero", header_length(0), [WEIGHTS, "not valid JSON"]),
    ("header no JSON", write(WEIGHTS, struct.pack("<Q", 4) + b"ham!"), [WEIGHTS, "not valid JSON"]),
    ("header a list", write(WEIGHTS, struct.pack("<Q", 2) + b"[]"), [WEIGHTS, "not a JSON object"]),
    ("header with a key twice", repeat_a_tensor, [WEIGHTS, "twice"]),
    ("data cut", cut(WEIGHTS, -1000), [WEIGHTS, "cut or damaged"]),
    ("bytes after the data", tensors(lambda header, data: data + b"more"), [WEIGHTS, "4 bytes at its end"]),
    ("gap in the data", tensors(leave_gap), [WEIGHTS, "belong to no tensor"]),
    ("overlapping tensors", tensors(overlap), [WEIGHTS, "overlaps"]),
    ("tensor missing", tensors(drop_last), [WEIGHTS, "missing", "expected shape"]),
    ("tensor too many", tensors(add_surplus), ["model.layers.0.mamba.weight", WEIGHTS, "no such tensor"]),
    ("tensor misshapen", transpose(GATE), [GATE, "expected shape [16, 256], found [256, 16]"]),
    ("tensor of another rank", entry(NORM, shape=[16, 16]), [NORM, "expected shape [256], found [16, 16]"]),
    ("tensor of a foreign type", entry(NORM, dtype="I64"), [NORM, "I64", "expected F32, F16 or BF16"]),
    ("tensor of a wider type", entry(NORM, dtype="F32"), [NORM, "does not take the 512 bytes"]),
    ("shape that overflows", entry(NORM, shape=[2**62, 4]), [NORM, "does not take"]),
    ("negative offsets", entry(NORM, data_offsets=[-512, 0]), [NORM, "non-negative"]),
    ("offsets beyond the file", entry(LAST, data_offsets=[2**63, 2**63 + 512]), [LAST, "cut or damaged"]),
    ("offsets in reverse", entry(NORM, data_offsets=[512, 0]), [NORM, "wrong form"]),
    ("entry without a type", tensors(lambda h, data: (h[NORM].pop("dtype"), data)[1]), [NORM, "dtype"]),
    # shards
    ("shard missing", then(sharded(), remove(SHARD)), [SHARD, "cannot be opened"]),
    ("shard cut", then(sharded(), cut(SHARD, -4)), [SHARD, "cut or damaged"]),
    ("shard outside the folder", sharded(lambda m: m.update({NORM: "../" + SHARD})),
     [NORM, "not the name of a file"]),
    ("index names too much", sharded(lambda m: m.update({"ghost": SHARD})), ["ghost", "does not hold it"]),
    ("index names too little", sharded(lambda m: m.pop(NORM)), [NORM, "does not put this tensor"]),
    ("index without a map", then(sharded(), write(INDEX, b"{}")), [INDEX, "weight_map"]),
    ("index no JSON", then(sharded(), write(INDEX, b"{")), [INDEX, "not valid JSON"]),
    # config.json
    ("config missing", remove(CONFIG), [CONFIG, "cannot be opened"]),
    ("config empty", write(CONFIG, b""), [CONFIG, "is empty"]),
    ("config no JSON", write(CONFIG, b"{'model_type': 'lfm2'}"), [CONFIG, "not valid JSON"]),
    ("config a list", write(CONFIG, b"[]"), [CONFIG, "JSON object"]),
    ("foreign architecture", config(model_type="llama"), ["model_type", '"llama" is not served', '"lfm2_moe"']),
    ("no architecture", config(model_type=None), ["model_type", "is missing"]),
    ("field missing", config(hidden_size=None), ["hidden_size", CONFIG, "is missing"]),
    ("field of the wrong type", config(hidden_size="256"), ["hidden_size", CONFIG, "expected an integer"]),
    ("field negative", config(num_experts=-1), ["num_experts", "expected an integer from 1"]),
    ("field enormous", config(hidden_size=10**18), ["hidden_size", "expected an integer"]),
    ("field at odds with the weights", config(moe_intermediate_size=64), ["expected shape", "found"]),
    ("vocabulary at odds with the weights", config(vocab_size=8192),
     ["embed_tokens", "[8192, 256], found [4096, 256]"]),
    ("more experts than weights", config(num_experts=17), ["expected shape"]),
    ("more experts a token than experts", config(num_experts_per_tok=17), ["num_experts_per_tok"]),
    ("heads that do not divide", config(num_key_value_heads=3), ["num_key_value_heads", "divisor"]),
    ("layer list too short", edit(CONFIG, drop_layer), ["layer_types", "list of 10"]),
    ("foreign layer", edit(CONFIG, lambda c: c["layer_types"].__setitem__(3, "mamba")), ["layer_types", '"mamba"']),
    ("scaled RoPE", config(rope_parameters={"rope_theta": 1e6, "rope_type": "yarn"}), ["rope", "yarn", "not served"]),
    ("quantised weights", config(quantization_config={"quant_method": "awq"}), ["quantization_config"]),
    ("epsilon zero", config(norm_eps=0), ["norm_eps", "above 0"]),
    ("end token beyond the vocabulary", edit("generation_config.json", lambda c: c.update(eos_token_id=4096)),
     ["eos_token_id", "below vocab_size 4096"]),
    ("generation_config no JSON", write("generation_config.json", b"{]"),
     ["generation_config.json", "not valid JSON"]),
    ("generation_config with a wild temperature", edit("generation_config.json", lambda c: c.update(temperature=-3)),
     ["generation_config.json", "temperature"]),
    # tokenizer.json and the template
    ("tokenizer missing", remove(TOKENIZER), [TOKENIZER, "cannot be opened"]),
    ("tokenizer empty", write(TOKENIZER, b""), [TOKENIZER]),
    ("tokenizer cut", cut(TOKENIZER, 100_000), [TOKENIZER, "JSON"]),
    ("tokenizer no UTF-8", write(TOKENIZER, b'{"model": "\xff\xfe"}'), [TOKENIZER]),
    ("tokenizer of another kind", edit(TOKENIZER, lambda t: t["model"].update(type="Unigram")),
     [TOKENIZER, "model.type", "Unigram", "BPE"]),
    ("tokenizer without a vocabulary", edit(TOKENIZER, lambda t: t["model"].update(vocab={})),
     [TOKENIZER, "model.vocab"]),
    ("tokenizer with a wild id", edit(TOKENIZER, lambda t: t["model"]["vocab"].update(zzz=10**12)),
     [TOKENIZER, "model.vocab"]),
    ("tokenizer with a broken merge", edit(TOKENIZER, lambda t: t["model"]["merges"].__setitem__(0, "one")),
     [TOKENIZER, "model.merges[0]"]),
    ("tokenizer larger than the model", edit(TOKENIZER, lambda t: t["added_tokens"].append(
        {**t["added_tokens"][-1], "id": 5000, "content": "<|beyond|>"})), ["5001 tokens", "4096"]),
    ("tokenizer with a foreign splitter", edit(TOKENIZER, lambda t: t.update(pre_tokenizer={"type": "Metaspace"})),
     [TOKENIZER, "Metaspace"]),
    ("template with a syntax error", write("chat_template.jinja", b"{% for m in messages %}{{ m }}"),
     ["chat_template"]),
    ("template with an unknown filter", write("chat_template.jinja", b"{{ messages | frobnicate }}"), ["frobnicate"]),
]


# --- GGUF -------------------------------------------------------------------------------------------------

class GgufMap:
    """Where in a GGUF file the parts of its header lie."""

    SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
    STRING, ARRAY = 8, 9

    def __init__(self, content: bytes):
        self.content, self.at = content, 8
        tensor_count, key_count = self._take("<Q"), self._take("<Q")
        self.keys, self.tensors = {}, {}
        for _ in range(key_count):
            start, name, kind = self.at, self._string(), self._take("<I")
            self.keys[name] = {"name": start + 8, "type": self.at - 4, "value": self.at}
            self._skip(kind)
        for _ in range(tensor_count):
            start, name, rank = self.at, self._string(), self._take("<I")
            dims = self.at
            self.at += 8 * rank
            self.tensors[name] = {"name": start + 8, "rank": dims - 4, "dims": dims, "type": self.at,
                                  "offset": self.at + 4}
            self.at += 12

    def _take(self, form: str) -> int:
        value = struct.unpack_from(form, self.content, self.at)[0]
        self.at += struct.calcsize(form)
        return value

    def _string(self) -> str:
        length = self._take("<Q")
        self.at += length
        return self.content[self.at - length:self.at].decode()

    def _skip(self, kind: int):
        if kind == self.STRING:
            self._string()
        elif kind == self.ARRAY:
            inner, count = self._take("<I"), self._take("<Q")
            if inner in self.SIZES:
                self.at += self.SIZES[inner] * count
            else:
                for _ in range(count):
                    self._skip(inner)
        else:
            self.at += self.SIZES[kind]


def patch(place, form: str, *values):
    """Overwrites what `place` names: an offset, ("keys" or "tensors", name, part), or such with a number to add."""
    def damage(file: pathlib.Path):
        content = bytearray(file.read_bytes())
        at = place
        if not isinstance(place, int):
            kind, name, part, *more = place
            at = getattr(GgufMap(bytes(content)), kind)[name][part] + sum(more)
        struct.pack_into(form, content, at, *values)
        file.write_bytes(content)
    return damage


def keep(count: int):
    def damage(file: pathlib.Path):
        os.truncate(file, count if count >= 0 else file.stat().st_size + count)
    return damage


def content(data: bytes):
    return lambda file: file.write_bytes(data)


def same_offset(file: pathlib.Path):
    """Two tensors over the same bytes."""
    parts = GgufMap(file.read_bytes()).tensors
    offset = struct.unpack_from("<Q", file.read_bytes(), parts["blk.0.attn_norm.weight"]["offset"])[0]
    patch(("tensors", "blk.1.attn_norm.weight", "offset"), "<Q", offset)(file)


ATTENTION_NORM = ("tensors", "blk.0.attn_norm.weight")
GATE_ROWS = ("tensors", "blk.2.ffn_gate_inp.weight")

FILES = [
    ("file empty", content(b""), ["is empty"]),
    ("bad magic", patch(0, "4s", b"GGML"), ["not a GGUF file", '"GGML"']),
    ("a zip file", content(b"PK\3\4" + bytes(100)), ["not a GGUF file", "zip"]),
    ("a safetensors file", content(struct.pack("<Q", 2) + b"{}" + bytes(50)), ["not a GGUF file"]),
    ("version 99", patch(4, "<I", 99), ["GGUF version 99", "expected 2 or 3"]),
    ("big endian", patch(4, ">I", 3), ["big-endian"]),
    ("cut in the counts", keep(12), ["cut or damaged", "counts"]),
    ("cut in the metadata", keep(5000), ["more than the file holds"]),
    ("cut in the data", keep(-100_000), ["cut or damaged"]),
    ("cut by one byte", keep(-1), ["cut or damaged"]),
    ("tensors without end", patch(8, "<Q", 2**63), ["claims 9223372036854775808 tensors"]),
    ("keys without end", patch(16, "<Q", 2**63), ["claims 9223372036854775808 metadata keys"]),
    ("one key too many", patch(16, "<Q", 60_000), ["cut or damaged"]),
    ("name without end", patch(24, "<Q", 2**62), ["cut or damaged"]),
    ("array without end", patch(("keys", "tokenizer.ggml.tokens", "value", 4), "<Q", 2**61),
     ["tokenizer.ggml.tokens", "claims"]),
    ("array of a foreign type", patch(("keys", "tokenizer.ggml.tokens", "value"), "<I", 77),
     ["tokenizer.ggml.tokens", "77"]),
    ("value of a foreign type", patch(("keys", "general.architecture", "type"), "<I", 77),
     ["general.architecture", "77"]),
    ("foreign architecture", patch(("keys", "general.architecture", "value", 8), "7s", b"llamaXY"), ["llamaXY"]),
    ("metadata missing", patch(("keys", "lfm2moe.block_count", "name"), "19s", b"lfm2moe.block_cound"),
     ["lfm2moe.block_count"]),
    ("metadata of the wrong type", patch(("keys", "lfm2moe.block_count", "type"), "<I", 6),
     ["lfm2moe.block_count", "integer"]),
    ("metadata out of range", patch(("keys", "lfm2moe.block_count", "value"), "<I", 2**31), ["lfm2moe.block_count"]),
    ("metadata at odds with the tensors", patch(("keys", "lfm2moe.embedding_length", "value"), "<I", 512),
     ["expected shape"]),
    ("tokens missing", patch(("keys", "tokenizer.ggml.tokens", "name"), "21s", b"tokenizer.ggml.tokenz"),
     ["tokenizer.ggml.tokens"]),
    ("foreign tokenizer", patch(("keys", "tokenizer.ggml.model", "value", 8), "4s", b"spm!"),
     ["tokenizer.ggml.model", "spm!"]),
    ("tensor missing", patch((*ATTENTION_NORM, "name", 6), "9s", b"attn_nurm"),
     ["model.layers.0.operator_norm.weight", "missing"]),
    ("tensor twice", patch((*ATTENTION_NORM, "name", 4), "1s", b"1"), ["blk.1.attn_norm.weight", "twice"]),
    ("tensor misshapen", patch((*GATE_ROWS, "dims"), "<QQ", 512, 8),
     ["feed_forward.gate", "expected shape [16, 256], found [8, 512]"]),
    ("tensor of no size", patch((*GATE_ROWS, "dims"), "<Q", 0), ["blk.2.ffn_gate_inp.weight", "do not fit"]),
    ("dimensions that overflow", patch((*GATE_ROWS, "dims"), "<QQ", 2**40, 2**40),
     ["blk.2.ffn_gate_inp.weight", "do not fit"]),
    ("nine dimensions", patch((*GATE_ROWS, "rank"), "<I", 9), ["blk.2.ffn_gate_inp.weight", "9 dimensions"]),
    ("tensor of an unknown type", patch((*ATTENTION_NORM, "type"), "<I", 99),
     ["blk.0.attn_norm.weight", "ggml type 99"]),
    ("tensor of a type not computed with", patch(("tensors", "blk.0.ffn_gate.weight", "type"), "<I", 10),
     ["blk.0.ffn_gate.weight", "Q2_K"]),
    ("norm in a block format", patch((*ATTENTION_NORM, "type"), "<I", 8),
     ["operator_norm", "expected f32, f16 or bf16"]),
    ("offset not aligned", patch((*ATTENTION_NORM, "offset"), "<Q", 7), ["blk.0.attn_norm.weight", "alignment"]),
    ("offset beyond the file", patch((*ATTENTION_NORM, "offset"), "<Q", 2**62),
     ["blk.0.attn_norm.weight", "cut or damaged"]),
    ("overlapping tensors", same_offset, ["attn_norm.weight", "overlaps"]),
]
