"""Measures the sample model with transformers (float32, CPU) and writes reference.json, the oracle of our own tests.

    oracle/bin/python scripts/sample_model_reference.py --model models/sample

Perplexity: the held-out text is encoded without BOS and cut into consecutive pieces of 511 tokens, the last one shorter;
each window is BOS and one piece, so every token of the text is predicted exactly once, from at most 511 tokens before
it. Perplexity is exp of the mean negative log likelihood over all tokens of all pieces. It is also measured with the
weights that a reader of the GGUF from `make_random_checkpoint.py --convert` sees, for three formats.

For each prompt: a greedy continuation, logits at the last and a few other positions, and the experts that every MoE
layer chooses at the last position. Two values say how far rounding could mislead a comparison: the gap between the best
two logits of each greedy step, and the least gap between a chosen expert's score and the best one not chosen.
"""
import argparse
import json
import math
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import AutoTokenizer, Lfm2MoeForCausalLM

import checkpoint_writer
import gguf_blocks

BOS, EOS, WINDOW, GREEDY_TOKENS = 1, 7, 512, 48
GGUF_QUANTS = ("q8_0", "q4_0", "q4_k_m")

TOOLS = [{"type": "function", "function": {
    "name": "get_verse", "description": "Look up a verse of the Bible.",
    "parameters": {"type": "object", "properties": {"book": {"type": "string"}, "chapter": {"type": "integer"},
                                                    "verse": {"type": "integer"}},
                   "required": ["book", "chapter", "verse"]}}}]

PROMPTS = [
    {"name": "bos-only", "text": ""},
    {"name": "short", "text": "In the beginning God"},
    {"name": "novel", "text": "Persuasion, chapter 12\n\nAnne and Henrietta, finding themselves the earliest of the party "
                              "the next morning, agreed to stroll down to the sea"},
    {"name": "long", "held_out_characters": 1100},
    {"name": "chat", "messages": [{"role": "user", "content": "Who are you?"}]},
    {"name": "chat-continue", "messages": [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "Continue: It was the most agreeable evening that she had ever spent,"}]},
    {"name": "chat-tool", "tools": TOOLS, "messages": [{"role": "user", "content": "Look up Genesis 1:3."}]},
    {"name": "chat-tool-result", "tools": TOOLS, "messages": [
        {"role": "user", "content": "Look up Genesis 1:3."},
        {"role": "assistant", "content": '<|tool_call_start|>[get_verse(book="Genesis", chapter=1, verse=3)]'
                                         "<|tool_call_end|>"},
        {"role": "tool", "content": "And God said, Let there be light: and there was light."}]},
    {"name": "psalm", "text": "Psalms, chapter 23\n\nThe LORD is my shepherd;"},
    {"name": "law", "text": "And the LORD spake unto Moses, saying,"},
    {"name": "gospel", "text": "And Jesus answered and said unto them,"},
    {"name": "letter", "text": "My dear Sir,\n\nI received your letter this morning, and"},
    {"name": "dialogue", "text": "\"How can you be so teasing,\" cried Elizabeth,"},
    {"name": "one-word", "text": "Emma"},
    {"name": "numbers", "text": "And all the days of Methuselah were nine hundred sixty and nine years:"},
    {"name": "capitals", "text": "CHAPTER I"},
    {"name": "unicode", "text": "Caf\u00e9 \u2014 na\u00efve \u65e5\u672c\u8a9e \U0001f600"},
    {"name": "spaces", "text": "  the   king \n\n\n of  "},
    {"name": "chat-quote", "messages": [{"role": "user", "content": "Quote Genesis 1:3."}]},
    {"name": "chat-turns", "messages": [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Good day to you."},
        {"role": "user", "content": "What have you read?"}]},
]


class RouterProbe:
    """Keeps what each MoE layer chose in the last forward pass and how clear the choice was."""

    def __init__(self, model):
        self.chosen, self.margin = {}, {}
        for layer, module in enumerate(model.model.layers):
            block = module.feed_forward
            if hasattr(block, "gate"):
                block.gate.register_forward_hook(self.hook(layer, block.expert_bias))

    def hook(self, layer, bias):
        def keep(module, inputs, outputs):
            best = (outputs[0].sigmoid() + bias).topk(module.top_k + 1, dim=-1).values
            self.margin[layer] = (best[:, -2] - best[:, -1])
            self.chosen[layer] = outputs[2]
        return keep


@torch.no_grad()
def logits_of(model, ids):
    return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float()


def held_out_perplexity(model, probe, ids):
    """(total negative log likelihood, tokens, layer -> chosen count of each expert)."""
    total, load = 0.0, {}
    for start in range(0, len(ids), WINDOW - 1):
        piece = torch.tensor(ids[start:start + WINDOW - 1])
        log_probs = logits_of(model, [BOS, *piece.tolist()]).double().log_softmax(-1)
        total -= log_probs[:-1].gather(1, piece[:, None]).sum().item()
        for layer, chosen in probe.chosen.items():
            count = torch.bincount(chosen.reshape(-1), minlength=model.config.num_experts)
            load[layer] = load.get(layer, 0) + count
    return total, len(ids), load


def weights_through_gguf(folder, quant, names):
    """The weights as a reader of the converted GGUF sees them, packed and named as transformers holds them."""
    source, plain = checkpoint_writer.FolderSource(folder), {}
    for tensor in checkpoint_writer.gguf_tensors(checkpoint_writer.shape_of_folder(folder), quant):
        data = b"".join(checkpoint_writer.pieces(tensor, source))
        values = torch.from_numpy(np.array(gguf_blocks.decode(data, tensor.format))).view(len(tensor.parts), -1)
        plain |= {part.name: row.view(part.shape) for part, row in zip(tensor.parts, values)}
    plain["lm_head.weight"] = plain["model.embed_tokens.weight"]

    def packed(name):
        stem, _, matrix = name.rpartition("experts.")
        experts = range(sum(n.startswith(stem + "experts.") and n.endswith("w2.weight") for n in plain))
        parts = {"gate_up_proj": ("w1", "w3"), "down_proj": ("w2",)}[matrix]
        return torch.stack([torch.cat([plain[f"{stem}experts.{e}.{w}.weight"] for w in parts]) for e in experts])
    return {name: plain[name] if name in plain else packed(name) for name in names}


@torch.no_grad()
def continuation(model, ids, count, pick):
    """`count` tokens through the cache, never stopped early; `pick` chooses from the logits."""
    out, gaps, cache, step = [], [], None, torch.tensor([ids])
    for _ in range(count):
        result = model(input_ids=step, past_key_values=cache, use_cache=True)
        cache, logits = result.past_key_values, result.logits[0, -1].float()
        best = logits.topk(2).values
        gaps.append((best[0] - best[1]).item())
        out.append(pick(logits))
        step = torch.tensor([[out[-1]]])
    return out, gaps


def sampler(seed, temperature, top_k):
    generator = torch.Generator().manual_seed(seed)

    def pick(logits):
        values, ids = (logits / temperature).topk(top_k)
        return int(ids[torch.multinomial(values.softmax(-1), 1, generator=generator)])
    return pick


def short_float(value, digits=8):
    return float(f"{value:.{digits}g}")


def position_record(row):
    """The 8 largest logits and 8 at ids that are the same for all positions."""
    ids = row.topk(8).indices.tolist()
    ids += [i for i in ((509 * k + 37) % len(row) for k in range(64)) if i not in ids][:8]
    return {"logits": {str(i): short_float(row[i].item()) for i in ids}, "argmax": int(row.argmax()),
            "logsumexp": short_float(row.double().logsumexp(-1).item())}


def encode_prompt(prompt, tokenizer, held_out):
    if "messages" in prompt:
        text = tokenizer.apply_chat_template(prompt["messages"], tools=prompt.get("tools"), tokenize=False,
                                             add_generation_prompt=True)
        return {"messages": prompt["messages"], **({"tools": prompt["tools"]} if "tools" in prompt else {}),
                "rendered": text}, tokenizer.encode(text, add_special_tokens=False)
    text = held_out[:prompt["held_out_characters"]] if "held_out_characters" in prompt else prompt["text"]
    return {"text": text}, tokenizer.encode(text)


def prompt_record(prompt, model, probe, tokenizer, held_out):
    fields, ids = encode_prompt(prompt, tokenizer, held_out)
    assert ids[0] == BOS and BOS not in ids[1:]
    logits = logits_of(model, ids)
    experts = {str(layer): sorted(chosen[-1].tolist()) for layer, chosen in probe.chosen.items()}
    margin = min(m.min().item() for m in probe.margin.values())
    greedy, gaps = continuation(model, ids, GREEDY_TOKENS, lambda row: int(row.argmax()))
    positions = sorted({0, len(ids) // 3, 2 * len(ids) // 3, max(0, len(ids) - 2), len(ids) - 1})
    return {"name": prompt["name"], **fields, "ids": ids, "greedy": greedy,
            "greedy_text": tokenizer.decode(greedy, skip_special_tokens=False),
            "greedy_ends_at": greedy.index(EOS) if EOS in greedy else None,
            "greedy_logit_gaps": [short_float(g, 4) for g in gaps],
            "positions": {str(p): position_record(logits[p]) for p in positions},
            "experts_at_last_position": experts, "least_router_margin": short_float(margin, 4)}


def load_record(load):
    """Share of a layer's (token, expert) pairs that its least, average and most used expert got."""
    return {str(layer): {k: short_float(f(count / count.sum()).item(), 4)
                         for k, f in (("min", torch.min), ("mean", torch.mean), ("max", torch.max))}
            for layer, count in load.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path, help="default: reference.json in the model's folder")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = Lfm2MoeForCausalLM.from_pretrained(args.model, dtype=torch.float32, attn_implementation="eager",
                                               experts_implementation="eager").eval()
    probe = RouterProbe(model)
    held_out = (args.model / "held-out.txt").read_text(encoding="utf-8")

    ids = tokenizer.encode(held_out, add_special_tokens=False)
    nll, count, load = held_out_perplexity(model, probe, ids)
    records = [prompt_record(p, model, probe, tokenizer, held_out) for p in PROMPTS]
    for seed, text in enumerate(("Emma, chapter 5\n\n", "Genesis 51\n\n1 ", "It is a truth")):
        written, _ = continuation(model, tokenizer.encode(text), 120, sampler(seed, 0.7, 40))
        print(f"=== {text!r}: {tokenizer.decode(written)}")
    through_gguf = {}
    for quant in GGUF_QUANTS:                                  # last, because the model's weights are replaced
        model.load_state_dict(weights_through_gguf(args.model, quant, model.state_dict()))
        through_gguf[quant] = short_float(math.exp(held_out_perplexity(model, probe, ids)[0] / count))
    reference = {
        "oracle": f"transformers {transformers.__version__}, torch {torch.__version__.split('+')[0]}, float32 on CPU, eager "
                  "attention and experts; the bfloat16 weights are widened to float32",
        "held_out": {"file": "held-out.txt", "tokens": count, "window": WINDOW, "nll_sum": short_float(nll, 10),
                     "nll_mean": short_float(nll / count), "perplexity": short_float(math.exp(nll / count)),
                     "definition": "text encoded without BOS, cut into consecutive pieces of window - 1 tokens, the last "
                                   "one shorter; each window is BOS and a piece; every token of a piece is predicted once; "
                                   "perplexity = exp(nll_sum / tokens)"},
        "held_out_perplexity_through_gguf": through_gguf,
        "expert_load": load_record(load),
        "prompts": records}
    path = args.out or args.model / "reference.json"
    path.write_text(json.dumps(reference, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    print(f"held-out perplexity {math.exp(nll / count):.3f} over {count} tokens; {len(held_out.encode()) / count:.2f} bytes "
          f"per token; through GGUF {through_gguf}")
    for layer, share in reference["expert_load"].items():
        print(f"layer {layer}: {share}")
    for record in records:
        print(f"--- {record['name']} ({len(record['ids'])} tokens, least gap {min(record['greedy_logit_gaps'])}, router "
              f"{record['least_router_margin']}): {record['greedy_text']!r}")


if __name__ == "__main__":
    main()
