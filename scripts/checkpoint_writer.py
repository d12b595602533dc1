"""Writes LFM2 and LFM2-MoE checkpoints tensor by tensor: HF folders (safetensors) and GGUF files. numpy only.

Every tensor that can be written is a concatenation of *plain tensors*: the matrices and vectors of a per-expert HF
checkpoint, under their names there. A source hands out float32 values of plain tensors by name and range:

    RandomSource   values are a pure function of (seed, plain name, index), the same under every numpy
    FolderSource   values of an existing HF folder, per-expert or packed

So the packed and the per-expert folder, and the float GGUF, of one seed hold the same numbers. Values pass through in
pieces of at most `PIECE` elements; memory use does not depend on the size of the model.
"""
import hashlib
import json
import math
import struct
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

import gguf_blocks
from gguf_blocks import FORMATS

PIECE = 1 << 18          # elements in flight; 1 MiB of float32 stays in a core's cache
ALIGNMENT = 32           # of GGUF tensor data
SPECIAL_TOKENS = ["<|pad|>", "<|startoftext|>", "<|endoftext|>", "<|fim_pre|>", "<|fim_mid|>", "<|fim_suf|>",
                  "<|im_start|>", "<|im_end|>", "<|tool_list_start|>", "<|tool_list_end|>", "<|tool_call_start|>",
                  "<|tool_call_end|>", "<|tool_response_start|>", "<|tool_response_end|>"]
BUILTIN_TEMPLATE = """\
{{- bos_token -}}
{%- for m in messages -%}
    {{- "<|im_start|>" + m["role"] + "\\n" + m["content"] + "<|im_end|>\\n" -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- "<|im_start|>assistant\\n" -}}{%- endif -%}
"""


# --- shapes --------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Shape:
    """Sizes of a model, in the words of config.json. `experts` = 0 means a dense model (model_type lfm2)."""
    hidden: int
    layers: int
    attention: tuple            # indices of the attention layers
    heads: int
    kv_heads: int
    ff: int                     # config value; see real_ff
    vocab: int = 65536
    head_dim: int = 64
    dense_layers: int = 2
    experts: int = 0
    top_k: int = 4
    expert_ff: int = 0
    tied: bool = True
    auto_adjust_ff: bool = False
    ff_multiplier: float = 1.0
    ff_multiple_of: int = 256
    rope_theta: float = 1e6
    norm_eps: float = 1e-5
    conv_taps: int = 3
    context: int = 128000
    norm_topk: bool = True
    routed_scale: float = 1.0
    expert_bias: bool = True

    @property
    def moe(self):
        return self.experts > 0

    def is_moe_layer(self, layer):
        return self.moe and layer >= self.dense_layers

    @property
    def real_ff(self):
        """Width of the dense FFN. Only dense models adjust it: two thirds, times a factor, up to a multiple."""
        if self.moe or not self.auto_adjust_ff:
            return self.ff
        width = int(self.ff_multiplier * int(2 * self.ff / 3))
        return self.ff_multiple_of * -(-width // self.ff_multiple_of)


PRESETS = {
    "tiny-moe": Shape(hidden=256, layers=6, attention=(2, 4), heads=4, kv_heads=2, ff=512, vocab=4096, experts=8,
                      expert_ff=256, context=4096),
    "tiny-dense": Shape(hidden=256, layers=5, attention=(2, 4), heads=4, kv_heads=2, ff=700, vocab=4096,
                        auto_adjust_ff=True, context=4096),
    "24b": Shape(hidden=2048, layers=40, attention=tuple(range(2, 40, 4)), heads=32, kv_heads=8, ff=11776, experts=64,
                 expert_ff=1536),
    "8b": Shape(hidden=2048, layers=24, attention=(2, 6, 10, 14, 18, 21), heads=32, kv_heads=8, ff=7168, experts=32,
                expert_ff=1792),
    "1.2b": Shape(hidden=2048, layers=16, attention=(2, 5, 8, 10, 12, 14), heads=32, kv_heads=8, ff=12288,
                  auto_adjust_ff=True),
    "350m": Shape(hidden=1024, layers=16, attention=(2, 5, 8, 10, 12, 14), heads=16, kv_heads=8, ff=6656,
                  auto_adjust_ff=True),
}


@dataclass(frozen=True)
class Plain:
    """A plain tensor; `deviation` and `centre` say how random values are drawn."""
    name: str
    shape: tuple
    deviation: float
    centre: float = 0.0

    @property
    def count(self):
        return math.prod(self.shape)


@dataclass(frozen=True)
class Tensor:
    """A tensor of a file: row-major shape, the format of its elements, the plain tensors it consists of."""
    name: str
    shape: tuple
    format: str
    parts: tuple

    @property
    def count(self):
        return math.prod(self.shape)

    @property
    def bytes(self):
        form = FORMATS[self.format]
        return self.count // form.size * form.bytes


def linear(name, outputs, inputs, gain=1.0):
    """Deviation 1/sqrt(inputs): inputs of RMS 1 give outputs of RMS `gain`."""
    return Plain(name, (outputs, inputs), gain / math.sqrt(inputs))


def norm(name, width):
    return Plain(name, (width,), 0.1, 1.0)


def plain_layer(shape, layer, gain=1.0):
    """The plain tensors of one layer by short name; experts under w1, w3, w2 as lists."""
    p, h, d = f"model.layers.{layer}.", shape.hidden, shape.head_dim
    out = {"operator_norm": norm(p + "operator_norm.weight", h), "ffn_norm": norm(p + "ffn_norm.weight", h)}
    if layer in shape.attention:
        a = p + "self_attn."
        out |= {"q_proj": linear(a + "q_proj.weight", shape.heads * d, h, gain),
                "k_proj": linear(a + "k_proj.weight", shape.kv_heads * d, h, gain),
                "v_proj": linear(a + "v_proj.weight", shape.kv_heads * d, h, gain),
                "attn_out": linear(a + "out_proj.weight", h, shape.heads * d, gain),
                "q_norm": norm(a + "q_layernorm.weight", d), "k_norm": norm(a + "k_layernorm.weight", d)}
    else:
        c = p + "conv."
        out |= {"in_proj": linear(c + "in_proj.weight", 3 * h, h, gain),
                "taps": Plain(c + "conv.weight", (h, 1, shape.conv_taps), 1 / math.sqrt(shape.conv_taps)),
                "conv_out": linear(c + "out_proj.weight", h, h, gain)}
    f = p + "feed_forward."
    if shape.is_moe_layer(layer):
        out["router"] = linear(f + "gate.weight", shape.experts, h)
        if shape.expert_bias:
            out["expert_bias"] = Plain(f + "expert_bias", (shape.experts,), 0.1)
        for w, (rows, columns) in {"w1": (shape.expert_ff, h), "w3": (shape.expert_ff, h),
                                   "w2": (h, shape.expert_ff)}.items():
            out[w] = [linear(f"{f}experts.{e}.{w}.weight", rows, columns, gain) for e in range(shape.experts)]
    else:
        ff = shape.real_ff
        out |= {"w1": linear(f + "w1.weight", ff, h, gain), "w3": linear(f + "w3.weight", ff, h, gain),
                "w2": linear(f + "w2.weight", h, ff, gain)}
    return out


def plain_ends(shape):
    """Embedding, final norm, and the head of untied models. Deviation 2/sqrt(H) gives logits of deviation about 2."""
    deviation = 2 / math.sqrt(shape.hidden)
    embedding = Plain("model.embed_tokens.weight", (shape.vocab, shape.hidden), deviation)
    head = None if shape.tied else Plain("lm_head.weight", (shape.vocab, shape.hidden), deviation)
    return embedding, norm("model.embedding_norm.weight", shape.hidden), head


def parameter_count(shape):
    ends = sum(p.count for p in plain_ends(shape) if p)
    layers = (v for i in range(shape.layers) for v in plain_layer(shape, i).values())
    return ends + sum(sum(p.count for p in v) if isinstance(v, list) else v.count for v in layers)


def config_json(shape, dtype, style="top-level"):
    """config.json as released models have it. `style`: rope_theta at the top (older) or in rope_parameters."""
    kinds = ["full_attention" if i in shape.attention else "conv" for i in range(shape.layers)]
    config = {
        "architectures": ["Lfm2MoeForCausalLM" if shape.moe else "Lfm2ForCausalLM"],
        "model_type": "lfm2_moe" if shape.moe else "lfm2", "bos_token_id": 1, "eos_token_id": 7, "pad_token_id": 0,
        "conv_L_cache": shape.conv_taps, "conv_bias": False, "dtype": {"bf16": "bfloat16", "f16": "float16",
                                                                       "f32": "float32"}[dtype],
        "hidden_size": shape.hidden, "layer_types": kinds, "max_position_embeddings": shape.context,
        "norm_eps": shape.norm_eps, "num_attention_heads": shape.heads, "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.kv_heads, "tie_word_embeddings": shape.tied, "use_cache": True,
        "vocab_size": shape.vocab}
    if shape.head_dim * shape.heads != shape.hidden:
        config["head_dim"] = shape.head_dim
    if style == "nested":
        config["rope_parameters"] = {"rope_theta": shape.rope_theta, "rope_type": "default"}
    else:
        config["rope_theta"] = shape.rope_theta
    if shape.moe:
        config |= {"intermediate_size": shape.ff, "moe_intermediate_size": shape.expert_ff,
                   "norm_topk_prob": shape.norm_topk, "num_dense_layers": shape.dense_layers,
                   "num_experts": shape.experts, "num_experts_per_tok": shape.top_k,
                   "routed_scaling_factor": shape.routed_scale, "use_expert_bias": shape.expert_bias}
    else:
        config |= {"block_auto_adjust_ff_dim": shape.auto_adjust_ff, "block_ff_dim": shape.ff,
                   "block_ffn_dim_multiplier": shape.ff_multiplier, "block_multiple_of": shape.ff_multiple_of,
                   "intermediate_size": shape.ff}
    return config


def shape_of_folder(folder):
    """The Shape that a config.json describes; anything this writer could not express is refused."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if config["model_type"] not in ("lfm2", "lfm2_moe") or config.get("conv_bias"):
        raise ValueError("only lfm2 and lfm2_moe without convolution bias can be converted")
    moe = config["model_type"] == "lfm2_moe"
    attention = tuple(i for i, kind in enumerate(config["layer_types"]) if kind == "full_attention") \
        if "layer_types" in config else tuple(config["full_attn_idxs"])
    rope = config.get("rope_parameters") or {}
    shape = Shape(
        hidden=config["hidden_size"], layers=config["num_hidden_layers"], attention=attention,
        heads=config["num_attention_heads"], kv_heads=config["num_key_value_heads"],
        head_dim=config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"],
        ff=config.get("block_ff_dim") or config["intermediate_size"], vocab=config["vocab_size"],
        tied=config.get("tie_word_embeddings", config.get("tie_embedding", True)),
        rope_theta=config.get("rope_theta") or rope["rope_theta"], norm_eps=config["norm_eps"],
        conv_taps=config["conv_L_cache"], context=config["max_position_embeddings"])
    if moe:
        return replace(shape, dense_layers=config["num_dense_layers"], experts=config["num_experts"],
                       top_k=config["num_experts_per_tok"], expert_ff=config["moe_intermediate_size"],
                       norm_topk=config.get("norm_topk_prob", True), expert_bias=config.get("use_expert_bias", True),
                       routed_scale=config.get("routed_scaling_factor", 1.0))
    return replace(shape, auto_adjust_ff=config.get("block_auto_adjust_ff_dim", True),
                   ff_multiplier=config.get("block_ffn_dim_multiplier") or 1.0,
                   ff_multiple_of=config.get("block_multiple_of", 256))


# --- tensors of the two file kinds ---------------------------------------------------------------------------------

def hf_tensors(shape, dtype, experts="per-expert", gain=1.0):
    """The tensors of an HF folder, in the order of the layers. The expert bias is always float32."""
    def single(plain, form=dtype):
        return Tensor(plain.name, plain.shape, form, (plain,))

    embedding, final_norm, head = plain_ends(shape)
    yield single(embedding)
    for layer in range(shape.layers):
        plain = plain_layer(shape, layer, gain)
        moe = shape.is_moe_layer(layer)
        for short, value in plain.items():
            if short == "expert_bias":
                yield single(value, "f32")
            elif not isinstance(value, list):
                yield single(value)
        if moe and experts == "per-expert":
            for trio in zip(plain["w1"], plain["w3"], plain["w2"]):
                yield from map(single, trio)
        elif moe:
            stem = f"model.layers.{layer}.feed_forward.experts."
            gate_up = tuple(p for pair in zip(plain["w1"], plain["w3"]) for p in pair)
            yield Tensor(stem + "gate_up_proj", (shape.experts, 2 * shape.expert_ff, shape.hidden), dtype, gate_up)
            yield Tensor(stem + "down_proj", (shape.experts, shape.hidden, shape.expert_ff), dtype, tuple(plain["w2"]))
    yield single(final_norm)
    if head:
        yield single(head)


def more_bits(index, count):
    """The layers to which the _M mixes give Q6_K: the first and last eighth, and every third between."""
    return index < count // 8 or index >= 7 * count // 8 or (index - count // 8) % 3 == 2


MIXES = {"q4_k_m": "q4_k", "q5_k_m": "q5_k"}
QUANTS = [name for name in FORMATS] + list(MIXES)


def fitting(form, row):
    """The format, or a finer one whose blocks fit into rows of this length."""
    if row % FORMATS[form].size == 0:
        return form
    return "q8_0" if row % 32 == 0 else "f16"


def gguf_tensors(shape, quant, head_quant=None, gain=1.0):
    """The tensors of a GGUF. Vectors, taps and routers stay float32; the head (or tied embedding) has its own format,
    by default Q6_K beside every 4- to 6-bit one, as published files have it."""
    base = MIXES.get(quant, quant)
    head_quant = head_quant or ("q6_k" if base.startswith(("q4", "q5", "q6")) else base)
    attention_seen = 0

    def tensor(name, parts, dims, form):
        return Tensor(name, dims, fitting(form, dims[-1]), parts)

    embedding, final_norm, head = plain_ends(shape)
    yield tensor("token_embd.weight", (embedding,), embedding.shape, base if head else head_quant)
    yield tensor("token_embd_norm.weight", (final_norm,), final_norm.shape, "f32")
    if head:
        yield tensor("output.weight", (head,), head.shape, head_quant)
    for layer in range(shape.layers):
        plain, prefix = plain_layer(shape, layer, gain), f"blk.{layer}."
        down = "q6_k" if quant in MIXES and more_bits(layer, shape.layers) else base
        plan = [("attn_norm.weight", "operator_norm", "f32")]
        if layer in shape.attention:
            v = "q6_k" if quant in MIXES and more_bits(attention_seen, len(shape.attention)) else base
            attention_seen += 1
            plan += [("attn_q.weight", "q_proj", base), ("attn_k.weight", "k_proj", base), ("attn_v.weight", "v_proj", v),
                     ("attn_output.weight", "attn_out", base), ("attn_q_norm.weight", "q_norm", "f32"),
                     ("attn_k_norm.weight", "k_norm", "f32")]
        else:
            plan += [("shortconv.in_proj.weight", "in_proj", base), ("shortconv.conv.weight", "taps", "f32"),
                     ("shortconv.out_proj.weight", "conv_out", base)]
        plan.append(("ffn_norm.weight", "ffn_norm", "f32"))
        if shape.is_moe_layer(layer):
            plan.append(("ffn_gate_inp.weight", "router", "f32"))
            if shape.expert_bias:
                plan.append(("exp_probs_b.bias", "expert_bias", "f32"))
        stack = "_exps" if shape.is_moe_layer(layer) else ""
        plan += [(f"ffn_gate{stack}.weight", "w1", base), (f"ffn_down{stack}.weight", "w2", down),
                 (f"ffn_up{stack}.weight", "w3", base)]
        for name, short, form in plan:
            value = plain[short]
            if isinstance(value, list):
                yield tensor(prefix + name, tuple(value), (len(value), *value[0].shape), form)
            else:
                dims = (value.shape[0], value.shape[2]) if short == "taps" else value.shape
                yield tensor(prefix + name, (value,), dims, form)


# --- sources of values ---------------------------------------------------------------------------------------------

def mix64(x):
    """The finaliser of SplitMix64, in place: every bit of the result depends on every bit of the input."""
    x ^= x >> np.uint64(30)
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x


def random_words(key, start, count):
    """Words start..start+count-1 of the sequence `key`: word i is mix64(key + (i + 1) * golden ratio), modulo 2^64."""
    x = np.arange(start + 1, start + count + 1, dtype=np.uint64)
    x *= np.uint64(0x9E3779B97F4A7C15)
    x += np.uint64(key)
    return mix64(x)


class RandomSource:
    """Nearly normal values: the sum of the four 16-bit parts of a random word, centred and scaled.

    Only integer operations, one exact conversion, one float32 product and one float32 sum are involved, so the values
    depend neither on the version of numpy nor on the machine."""
    SUM_MEAN = 2 * 65535                            # of four uniform 16-bit numbers
    SUM_DEVIATION = math.sqrt((65536**2 - 1) / 3)   # square root of 4 * (2^32 - 1) / 12

    def __init__(self, seed):
        self.seed = seed

    def key(self, name):
        return int.from_bytes(hashlib.blake2b(f"{self.seed}/{name}".encode(), digest_size=8).digest(), "little")

    def read(self, plain, start, count):
        words = random_words(self.key(plain.name), start, count)
        total = (words & np.uint64(0xFFFF)).astype(np.int64)
        for shift in (16, 32, 48):
            total += ((words >> np.uint64(shift)) & np.uint64(0xFFFF)).astype(np.int64)
        total -= self.SUM_MEAN
        values = total.astype(np.float32) * np.float32(plain.deviation / self.SUM_DEVIATION)
        return values + np.float32(plain.centre) if plain.centre else values

    def byte_stream(self, name):
        """A function n -> the next n bytes of the sequence that belongs to `name`."""
        key, position = self.key(name), 0

        def take(n):
            nonlocal position
            words = random_words(key, position, -(-n // 8))
            position += len(words)
            return words.astype("<u8").view(np.uint8)[:n]
        return take


class FolderSource:
    """Plain tensors of an HF folder: one file or shards, experts one by one or packed, tied head or not."""
    DTYPES = {"BF16": ("bf16", 2), "F16": ("f16", 2), "F32": ("f32", 4)}

    def __init__(self, folder):
        self.where = {}                             # name -> (file, format, byte offset, element count)
        index = folder / "model.safetensors.index.json"
        names = sorted(set(json.loads(index.read_text())["weight_map"].values())) if index.exists() \
            else ["model.safetensors"]
        for name in names:
            path = folder / name
            with open(path, "rb") as file:
                (length,) = struct.unpack("<Q", file.read(8))
                header = json.loads(file.read(length))
            for tensor, entry in header.items():
                if tensor != "__metadata__":
                    form, _ = self.DTYPES[entry["dtype"]]
                    self.where[tensor] = (path, form, 8 + length + entry["data_offsets"][0], math.prod(entry["shape"]))

    def locate(self, plain):
        """(file, format, byte offset of the first element) of a plain tensor, also inside a packed one."""
        entry = self.where.get(plain.name) or self.where.get(plain.name.removesuffix(".weight"))
        if entry:
            if entry[3] != plain.count:
                raise ValueError(f"{plain.name}: {entry[3]} elements in the file, {plain.count} by config.json")
            return entry[:3]
        stem, _, rest = plain.name.partition("experts.")
        expert, matrix = rest.split(".")[:2] if rest else ("0", "")
        packed = {"w1": ("gate_up_proj", 2, 0), "w3": ("gate_up_proj", 2, 1), "w2": ("down_proj", 1, 0)}.get(matrix)
        if packed:
            name, per_expert, slot = packed
            entry = self.where.get(f"{stem}experts.{name}") or self.where.get(f"{stem}experts.{name}.weight")
            if entry:
                element = (int(expert) * per_expert + slot) * plain.count
                return entry[0], entry[1], entry[2] + element * FORMATS[entry[1]].bytes
        raise KeyError(f"the folder has no tensor {plain.name}")

    def read(self, plain, start, count):
        path, form, offset = self.locate(plain)
        size = FORMATS[form].bytes
        with open(path, "rb") as file:
            file.seek(offset + start * size)
            return gguf_blocks.decode(file.read(count * size), form)


def pieces(tensor, source):
    """The encoded bytes of a tensor, a piece at a time. Parts are whole rows, so blocks never straddle two parts."""
    for plain in tensor.parts:
        for start in range(0, plain.count, PIECE):
            count = min(PIECE, plain.count - start)
            yield gguf_blocks.encode(source.read(plain, start, count), tensor.format)


def drawn_pieces(tensor, source):
    """Like `pieces` for quantised formats, but random blocks are drawn directly: many times quicker."""
    form, take = FORMATS[tensor.format], source.byte_stream(tensor.name)
    blocks = tensor.count // form.size
    for start in range(0, blocks, PIECE // form.size):
        count = min(PIECE // form.size, blocks - start)
        yield gguf_blocks.draw(take, count, tensor.format, tensor.parts[0].deviation)


# --- safetensors ---------------------------------------------------------------------------------------------------

SAFETENSORS_DTYPE = {"bf16": "BF16", "f16": "F16", "f32": "F32"}


def write_safetensors_file(path, tensors, source):
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for t in tensors:
        header[t.name] = {"dtype": SAFETENSORS_DTYPE[t.format], "shape": list(t.shape),
                          "data_offsets": [offset, offset + t.bytes]}
        offset += t.bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)                 # tensor data begins at a multiple of 8
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for t in tensors:
            for piece in pieces(t, source):
                file.write(piece)


def split_into_shards(tensors, limit_bytes):
    """Whole tensors in order; a new shard begins when the limit would be passed."""
    shards, size = [[]], 0
    for t in tensors:
        if shards[-1] and size + t.bytes > limit_bytes:
            shards.append([])
            size = 0
        shards[-1].append(t)
        size += t.bytes
    return shards


def write_hf_folder(folder, shape, source, dtype, experts, tokenizer, shard_mb=None, gain=1.0, style="top-level"):
    folder.mkdir(parents=True, exist_ok=True)
    tensors = list(hf_tensors(shape, dtype, experts, gain))
    if shard_mb is None:
        write_safetensors_file(folder / "model.safetensors", tensors, source)
    else:
        shards = split_into_shards(tensors, shard_mb * 1_000_000)
        weight_map = {}
        for number, shard in enumerate(shards, 1):
            name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            write_safetensors_file(folder / name, shard, source)
            weight_map |= {t.name: name for t in shard}
        write_json(folder / "model.safetensors.index.json",
                   {"metadata": {"total_size": sum(t.bytes for t in tensors)}, "weight_map": weight_map})
    write_json(folder / "config.json", config_json(shape, dtype, style))
    write_json(folder / "generation_config.json", {"bos_token_id": 1, "eos_token_id": 7, "pad_token_id": 0})
    if tokenizer:
        tokenizer.write_hf_files(folder)


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


# --- tokenizer -----------------------------------------------------------------------------------------------------

def byte_alphabet():
    """GPT-2's printable stand-in for each byte: itself if printable Latin-1, else the next code from 256 on."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    spare = iter(range(256, 512))
    return [chr(b) if b in printable else chr(next(spare)) for b in range(256)]


@dataclass
class Tokenizer:
    """What a GGUF and an HF folder need to know of a byte-level BPE vocabulary."""
    tokens: list                  # by id, in the byte alphabet
    special: set                  # ids
    merges: list                  # pairs
    template: str
    files: dict = field(default_factory=dict)      # HF file name -> bytes

    @staticmethod
    def from_folder(folder):
        data = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        by_id = {i: token for token, i in data["model"]["vocab"].items()}
        by_id |= {t["id"]: t["content"] for t in data["added_tokens"]}
        if sorted(by_id) != list(range(len(by_id))):
            raise ValueError(f"{folder}/tokenizer.json: ids have gaps")
        merges = [m.split(" ") if isinstance(m, str) else m for m in data["model"]["merges"]]
        template_file = folder / "chat_template.jinja"
        template = template_file.read_text(encoding="utf-8") if template_file.exists() else \
            json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8")).get("chat_template", "")
        files = {n: (folder / n).read_bytes() for n in ("tokenizer.json", "tokenizer_config.json",
                                                        "chat_template.jinja") if (folder / n).exists()}
        return Tokenizer([by_id[i] for i in range(len(by_id))], {t["id"] for t in data["added_tokens"] if t["special"]},
                         merges, template, files)

    @staticmethod
    def builtin():
        """The smallest usable vocabulary: the special tokens, the 256 bytes and a few merges; 278 entries."""
        merges = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("i", "n"), ("e", "r"), ("Ġ", "a"), ("o", "u"), ("a", "n")]
        tokens = SPECIAL_TOKENS + byte_alphabet() + [a + b for a, b in merges]
        split = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
                 r"|\s*[\r\n]+|\s+(?!\S)|\s+")
        byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
        bos = {"SpecialToken": {"id": "<|startoftext|>", "type_id": 0}}
        a, b = ({"Sequence": {"id": x, "type_id": 0}} for x in "AB")
        tokenizer = {
            "version": "1.0", "truncation": None, "padding": None, "normalizer": None,
            "added_tokens": [{"id": i, "content": t, "single_word": False, "lstrip": False, "rstrip": False,
                              "normalized": False, "special": True} for i, t in enumerate(SPECIAL_TOKENS)],
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": split}, "behavior": "Isolated", "invert": False}, byte_level]},
            "post_processor": {"type": "TemplateProcessing", "single": [bos, a], "pair": [bos, a, b],
                               "special_tokens": {"<|startoftext|>": {"id": "<|startoftext|>", "ids": [1],
                                                                      "tokens": ["<|startoftext|>"]}}},
            "decoder": byte_level,
            "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                      "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                      "vocab": {t: i for i, t in enumerate(tokens)}, "merges": [list(m) for m in merges]}}
        config = {"add_bos_token": True, "add_eos_token": False, "bos_token": "<|startoftext|>",
                  "clean_up_tokenization_spaces": False, "eos_token": "<|im_end|>", "pad_token": "<|pad|>",
                  "tokenizer_class": "PreTrainedTokenizerFast"}
        files = {"tokenizer.json": json.dumps(tokenizer, ensure_ascii=False, indent=1).encode(),
                 "tokenizer_config.json": json.dumps(config, indent=2).encode(),
                 "chat_template.jinja": BUILTIN_TEMPLATE.encode()}
        return Tokenizer(tokens, set(range(len(SPECIAL_TOKENS))), merges, BUILTIN_TEMPLATE, files)

    def write_hf_files(self, folder):
        for name, data in self.files.items():
            (folder / name).write_bytes(data)


# --- GGUF ----------------------------------------------------------------------------------------------------------

class GgufValue:
    """Encoders of metadata values: the type number and the bytes."""
    U32, I32, F32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9
    PACK = {U32: "<I", I32: "<i", F32: "<f", BOOL: "<?"}

    @classmethod
    def raw(cls, kind, value):
        return gguf_string(value) if kind == cls.STRING else struct.pack(cls.PACK[kind], value)

    @classmethod
    def encode(cls, kind, value):
        if isinstance(value, list):
            return struct.pack("<IIQ", cls.ARRAY, kind, len(value)) + b"".join(cls.raw(kind, v) for v in value)
        return struct.pack("<I", kind) + cls.raw(kind, value)


def gguf_string(text):
    data = text.encode("utf-8")
    return struct.pack("<Q", len(data)) + data


FILE_TYPE = {"f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q8_0": 7, "q4_k": 14, "q4_k_m": 15, "q5_k": 16, "q5_k_m": 17,
             "q6_k": 18, "bf16": 32}


def gguf_metadata(shape, quant, tokenizer, name):
    """(key, kind, value) in file order. The per-layer count of KV heads is the only record of the layer pattern."""
    v, arch = GgufValue, "lfm2moe" if shape.moe else "lfm2"
    out = [("general.architecture", v.STRING, arch), ("general.type", v.STRING, "model"),
           ("general.name", v.STRING, name), ("general.file_type", v.U32, FILE_TYPE[quant]),
           ("general.quantization_version", v.U32, 2), ("general.alignment", v.U32, ALIGNMENT)]
    sizes = [("block_count", v.U32, shape.layers), ("context_length", v.U32, shape.context),
             ("embedding_length", v.U32, shape.hidden), ("feed_forward_length", v.U32, shape.real_ff),
             ("attention.head_count", v.U32, shape.heads),
             ("attention.head_count_kv", v.I32, [shape.kv_heads if i in shape.attention else 0
                                                 for i in range(shape.layers)]),
             ("attention.key_length", v.U32, shape.head_dim), ("attention.value_length", v.U32, shape.head_dim),
             ("attention.layer_norm_rms_epsilon", v.F32, shape.norm_eps), ("rope.freq_base", v.F32, shape.rope_theta),
             ("rope.dimension_count", v.U32, shape.head_dim), ("vocab_size", v.U32, shape.vocab),
             ("shortconv.l_cache", v.U32, shape.conv_taps)]
    if shape.moe:
        if not shape.norm_topk or shape.routed_scale != 1.0:
            raise ValueError("GGUF has no key for norm_topk_prob = false or a routed_scaling_factor")
        sizes += [("expert_count", v.U32, shape.experts), ("expert_used_count", v.U32, shape.top_k),
                  ("expert_feed_forward_length", v.U32, shape.expert_ff),
                  ("leading_dense_block_count", v.U32, shape.dense_layers),
                  ("expert_gating_func", v.U32, 2)]                                          # sigmoid
    out += [(f"{arch}.{key}", kind, value) for key, kind, value in sizes]
    if tokenizer:
        spare = [f"<|reserved_{i}|>" for i in range(len(tokenizer.tokens), shape.vocab)]
        kinds = [3 if i in tokenizer.special else 1 for i in range(shape.vocab)]             # control, normal
        out += [("tokenizer.ggml.model", v.STRING, "gpt2"), ("tokenizer.ggml.pre", v.STRING, "lfm2"),
                ("tokenizer.ggml.tokens", v.STRING, tokenizer.tokens + spare),
                ("tokenizer.ggml.token_type", v.I32, kinds),
                ("tokenizer.ggml.merges", v.STRING, [f"{a} {b}" for a, b in tokenizer.merges]),
                ("tokenizer.ggml.bos_token_id", v.U32, 1), ("tokenizer.ggml.eos_token_id", v.U32, 7),
                ("tokenizer.ggml.padding_token_id", v.U32, 0), ("tokenizer.ggml.add_bos_token", v.BOOL, True),
                ("tokenizer.ggml.add_sep_token", v.BOOL, False), ("tokenizer.ggml.add_eos_token", v.BOOL, False)]
        if tokenizer.template:
            out.append(("tokenizer.chat_template", v.STRING, tokenizer.template))
    return out


def write_gguf(path, shape, source, quant, head_quant, tokenizer, name, draw_blocks=False, gain=1.0):
    """`draw_blocks`: quantised tensors get random blocks instead of quantised values of the source."""
    tensors = list(gguf_tensors(shape, quant, head_quant, gain))
    metadata = gguf_metadata(shape, quant, tokenizer, name)
    infos, offset = [], 0
    for t in tensors:
        dims = t.shape[::-1]                                                     # fastest first
        infos.append(gguf_string(t.name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims,
                                                       FORMATS[t.format].type_id, offset))
        offset += t.bytes + -t.bytes % ALIGNMENT
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        file.write(struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(metadata)))
        for key, kind, value in metadata:
            file.write(gguf_string(key) + GgufValue.encode(kind, value))
        file.write(b"".join(infos))
        file.write(b"\0" * (-file.tell() % ALIGNMENT))
        for t in tensors:
            drawn = draw_blocks and FORMATS[t.format].size > 1
            for piece in (drawn_pieces if drawn else pieces)(t, source):
                file.write(piece)
            file.write(b"\0" * (-t.bytes % ALIGNMENT))
