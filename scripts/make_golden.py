"""Records what transformers computes for tiny random checkpoints, as the oracle of the C++ tests.

    python3 -m venv oracle && oracle/bin/pip install torch transformers safetensors numpy
    oracle/bin/python scripts/make_golden.py --out tests/golden/tiny

Each case is one JSON file: the arguments with which scripts/make_random_checkpoint.py makes the checkpoint (it is not
stored; the same arguments give the same bytes anywhere), and float32 results of the CPU: logits over the whole small
vocabulary at a few positions, the experts chosen at the last position, and a greedy continuation made with the cache;
and for one prompt of 40 tokens the logits at every position (little-endian float32 in base64), for chunked prefill.
"""
import argparse
import base64
import hashlib
import json
import tempfile
from pathlib import Path

import torch
import transformers

import make_random_checkpoint

COMMON = ["--vocab", "320", "--tokenizer", "builtin"]
CASES = {
    "moe": ["--preset", "tiny-moe", "--dtype", "bf16"],
    "moe-untied": ["--preset", "tiny-moe", "--dtype", "f32", "--untied", "--num-experts", "12", "--top-k", "3",
                   "--expert-ff", "96", "--layers", "5", "--attention", "3", "--config-style", "nested",
                   "--experts", "packed"],
    "dense": ["--preset", "tiny-dense", "--dtype", "bf16"],
}
GREEDY_TOKENS = 16
# Two experts whose scores differ by less than this could be swapped by rounding; such a golden would be of no use.
LEAST_ROUTER_MARGIN = 2e-5


def prompts(vocab):
    """Token ids that look arbitrary and reach all of the vocabulary; lengths around the 3-tap window and beyond."""
    return [[1 + (7 * i * i + 13 * n * i + 5 * n) % (vocab - 1) for i in range(n)] for n in (1, 2, 3, 17, 70)]


def router_probe(model):
    """Hooks that keep, per MoE layer, the chosen experts and the least gap between the last chosen and the first not."""
    seen = {}

    def hook_for(layer, block):
        def hook(module, inputs, outputs):
            scores = inputs[0] @ module.weight.T
            scores = scores.sigmoid() + (block.expert_bias if block.use_expert_bias else 0)
            top = scores.topk(module.top_k + 1, dim=-1).values
            seen[layer] = (outputs[2].clone(), (top[:, -2] - top[:, -1]).min().item())
        return hook

    for layer, module in enumerate(model.model.layers):
        if hasattr(module.feed_forward, "gate"):
            module.feed_forward.gate.register_forward_hook(hook_for(layer, module.feed_forward))
    return seen


def rounded(values):
    return [float(f"{v:.8g}") for v in values.tolist()]


@torch.no_grad()
def greedy(model, ids, count):
    """Token by token through the cache, so a decode path can be compared with it. Never stops early."""
    out, cache, step = [], None, torch.tensor([ids])
    for _ in range(count):
        result = model(input_ids=step, past_key_values=cache, use_cache=True)
        cache = result.past_key_values
        out.append(int(result.logits[0, -1].argmax()))
        step = torch.tensor([[out[-1]]])
    return out


@torch.no_grad()
def every_position(model, probe):
    """Logits at each position of the first 40-token prompt whose choices of experts are clear-cut."""
    vocab = model.config.vocab_size
    for n in range(40, 100):
        ids = [1 + (11 * i * i + 17 * n * i + 3 * n) % (vocab - 1) for i in range(40)]
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
        if all(gap >= LEAST_ROUTER_MARGIN for _, gap in probe.values()):
            data = logits.float().contiguous().numpy().astype("<f4").tobytes()
            return {"ids": ids, "logits_f32_base64": base64.b64encode(data).decode()}
    raise SystemExit("no prompt with clear-cut choices of experts")


@torch.no_grad()
def record(folder):
    """Results of all prompts, or None if some choice of experts is too close to call."""
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager",
        output_loading_info=True)
    assert not any(report[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    probe, results = router_probe(model.eval()), []
    for ids in prompts(model.config.vocab_size):
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
        experts = {str(layer): sorted(chosen[-1].tolist()) for layer, (chosen, _) in probe.items()}
        margin = min((gap for _, gap in probe.values()), default=None)
        if margin is not None and margin < LEAST_ROUTER_MARGIN:
            return None
        positions = sorted({0, len(ids) // 2, len(ids) - 1})
        results.append({"ids": ids, "logits": {str(p): rounded(logits[p]) for p in positions},
                        "experts_at_last_position": experts, "least_router_margin": margin,
                        "greedy": greedy(model, ids, GREEDY_TOKENS)})
    return results, every_position(model, probe)


def make_case(name, arguments, scratch):
    folder, results = scratch / name, None
    for seed in range(1, 100):                              # the first seed whose router choices are clear-cut
        seeded = [*arguments, "--seed", str(seed)]
        make_random_checkpoint.main([*seeded, "--out", str(folder)])
        results = record(folder)
        if results:
            break
    arguments = seeded
    if "--preset tiny-moe" in " ".join(arguments):          # the other layout of the experts: the same model to the bit
        other = "per-expert" if "packed" in arguments else "packed"
        plain = [a for a in arguments if a not in ("--experts", "packed")]
        make_random_checkpoint.main([*plain, "--experts", other, "--out", str(scratch / "other")])
        assert record(scratch / "other") == results, "packed and per-expert checkpoints differ"
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    return {"case": name, "make_random_checkpoint_arguments": arguments, "model_safetensors_sha256": digest,
            "oracle": f"transformers {transformers.__version__}, torch {torch.__version__.split('+')[0]}, float32, CPU, "
                      "eager attention and experts; bf16 weights are widened to float32 first",
            "prompts": results[0], "every_position": results[1]}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    for name, arguments in CASES.items():
        with tempfile.TemporaryDirectory() as scratch:
            case = make_case(name, [*arguments, *COMMON], Path(scratch))
        path = args.out / f"{name}.json"
        path.write_text(json.dumps(case, separators=(",", ":")) + "\n", encoding="utf-8")
        margins = [p["least_router_margin"] for p in case["prompts"] if p["least_router_margin"] is not None]
        print(f"{path}: {path.stat().st_size:,} bytes, least router margin {min(margins, default=float('nan')):.1e}")


if __name__ == "__main__":
    main()
