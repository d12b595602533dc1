"""Makes the golden checkpoints beside this file with Hugging Face transformers and gguf-py.

They are the independent oracle of the checkpoint readers: written by other people's code, with what
that code says is in them in expected.json. Run once, offline:  python3 make.py
"""

import json
import pathlib

import gguf
import numpy as np
import torch
from transformers import Lfm2Config, Lfm2ForCausalLM, Lfm2MoeConfig, Lfm2MoeForCausalLM

HERE = pathlib.Path(__file__).parent
COMMON = dict(
    vocab_size=48, hidden_size=32, num_attention_heads=2, num_key_value_heads=1,
    max_position_embeddings=256, norm_eps=1e-5, conv_L_cache=3, conv_bias=False,
    bos_token_id=1, eos_token_id=7, pad_token_id=0, dtype="bfloat16")


def expected(model):
    """name -> [shape, sum, first value, last value] of the model's own state dict."""
    out = {}
    for name, tensor in model.state_dict().items():
        flat = tensor.double().flatten()
        out[name] = [list(tensor.shape), flat.sum().item(), flat[0].item(), flat[-1].item()]
    return out


def randomise(model):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in list(model.parameters()) + list(model.buffers()):
            if tensor.dtype.is_floating_point:
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.5)


def save(name, config_class, model_class, shard=None, **fields):
    model = model_class(config_class(**COMMON, **fields)).to(torch.bfloat16)
    for module in model.modules():  # as in the released checkpoints
        if hasattr(module, "expert_bias"):
            module.expert_bias = module.expert_bias.float()
    randomise(model)
    folder = HERE / name
    model.save_pretrained(folder, **({"max_shard_size": shard} if shard else {}))
    return dict(parameters=sum(p.numel() for p in model.parameters())
                + sum(b.numel() for n, b in model.named_buffers() if n.endswith("expert_bias")),
                tensors=expected(model))


def write_gguf():
    rng = np.random.default_rng(2)
    writer = gguf.GGUFWriter(HERE / "container.gguf", "lfm2moe")
    writer.add_uint8("t.u8", 200)
    writer.add_int8("t.i8", -100)
    writer.add_uint16("t.u16", 60000)
    writer.add_int16("t.i16", -30000)
    writer.add_uint32("t.u32", 4000000000)
    writer.add_int32("t.i32", -2000000000)
    writer.add_uint64("t.u64", 2**63 + 5)
    writer.add_int64("t.i64", -(2**62))
    writer.add_float32("t.f32", 0.15625)
    writer.add_float64("t.f64", 1e-300)
    writer.add_bool("t.bool", True)
    writer.add_string("t.string", "grüße")
    writer.add_array("t.ints", [3, -1, 4, 1, -5])
    writer.add_array("t.floats", [0.5, -0.25])
    writer.add_array("t.strings", ["a", "", "日本"])
    facts = {}
    for name, shape, kind in [("plain", (3, 64), "F32"), ("half", (5, 32), "F16"),
                              ("q8", (4, 64), "Q8_0"), ("q4", (2, 96), "Q4_0"),
                              ("q41", (2, 32), "Q4_1"), ("bf", (7, 8), "BF16")]:
        values = rng.standard_normal(shape).astype(np.float32)
        kind_id = getattr(gguf.GGMLQuantizationType, kind)
        data = values if kind == "F32" else gguf.quantize(values, kind_id)
        writer.add_tensor(name, data, raw_dtype=kind_id)
        facts[name] = dict(type=int(kind_id), dims=list(reversed(shape)),
                           bytes=[int(b) for b in data.tobytes()])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return facts


def main():
    moe = dict(num_hidden_layers=4, layer_types=["conv", "full_attention", "conv", "full_attention"],
               intermediate_size=48, moe_intermediate_size=16, num_experts=4, num_experts_per_tok=2,
               num_dense_layers=1, use_expert_bias=True, norm_topk_prob=True,
               routed_scaling_factor=1.0, rope_parameters={"rope_type": "default", "rope_theta": 1e6})
    dense = dict(num_hidden_layers=3, layer_types=["conv", "conv", "full_attention"],
                 block_ff_dim=96, block_multiple_of=16, block_ffn_dim_multiplier=1.0,
                 block_auto_adjust_ff_dim=True,
                 rope_parameters={"rope_type": "default", "rope_theta": 5e6})
    facts = dict(hf_moe=save("hf_moe", Lfm2MoeConfig, Lfm2MoeForCausalLM, **moe),
                 hf_sharded=save("hf_sharded", Lfm2Config, Lfm2ForCausalLM, shard="30KB", **dense),
                 gguf=write_gguf())
    (HERE / "expected.json").write_text(json.dumps(facts) + "\n")


main()
