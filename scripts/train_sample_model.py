"""Trains the sample model: a small LFM2-MoE of real structure that writes recognisable English.

    python3 -m venv oracle && oracle/bin/pip install torch transformers tokenizers safetensors numpy jinja2
    apt-get install --no-install-recommends bible-kjv bible-kjv-text r-cran-janeaustenr
    oracle/bin/python scripts/train_sample_model.py --out models/sample --minutes 50 --threads 2

The learning-rate schedule follows the share of the wall time (`--minutes`) or of the steps (`--steps`) that is spent,
so a run always finishes; only `--steps` makes two runs on one machine see the same schedule. What is written: the
checkpoint as real LFM2-MoE checkpoints have it (one tensor per expert, bfloat16, float32 expert bias), the tokenizer,
the chat template, the generation defaults and the held-out text. `sample_model_reference.py` measures the result.

Experts are kept busy without an auxiliary loss: after each step the selection bias of an expert that got less than
its share rises by a fixed amount and that of a busier one falls (Wang et al. 2024, "Auxiliary-Loss-Free Load Balancing
Strategy for Mixture-of-Experts"). The bias changes which experts are chosen, never the weight of their outputs.
"""
import argparse
import json
import math
import random
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.nn import functional as F
from transformers import Lfm2MoeConfig, Lfm2MoeForCausalLM
from transformers.models.lfm2_moe import modeling_lfm2_moe

import sample_corpus

SPECIAL_TOKENS = ["<|pad|>", "<|startoftext|>", "<|endoftext|>", "<|fim_pre|>", "<|fim_mid|>", "<|fim_suf|>",
                  "<|im_start|>", "<|im_end|>", "<|tool_list_start|>", "<|tool_list_end|>", "<|tool_call_start|>",
                  "<|tool_call_end|>", "<|tool_response_start|>", "<|tool_response_end|>"]
PAD, BOS, EOT, EOS = 0, 1, 2, 7

# Contractions; letters with one leading mark; up to three digits; marks; line ends; spaces before a word; spaces.
SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
         r"|\s*[\r\n]+|\s+(?!\S)|\s+")

# Of the LFM2 generation: tools in the system turn between their two tokens, tool results between theirs, tool calls as
# part of the assistant's text. Jinja's loops have their own scope, hence the namespace.
CHAT_TEMPLATE = """\
{{- bos_token -}}
{%- set turns = messages -%}
{%- set preamble = "" -%}
{%- if messages and messages[0]["role"] == "system" -%}
    {%- set preamble = messages[0]["content"] -%}
    {%- set turns = messages[1:] -%}
{%- endif -%}
{%- if tools -%}
    {%- set list = namespace(text="") -%}
    {%- for tool in tools -%}
        {%- set entry = tool if tool is string else tool | tojson -%}
        {%- set list.text = list.text + entry + ("" if loop.last else ", ") -%}
    {%- endfor -%}
    {%- if preamble -%}{%- set preamble = preamble + "\\n" -%}{%- endif -%}
    {%- set preamble = preamble + "List of tools: <|tool_list_start|>[" + list.text + "]<|tool_list_end|>" -%}
{%- endif -%}
{%- if preamble -%}
    {{- "<|im_start|>system\\n" + preamble + "<|im_end|>\\n" -}}
{%- endif -%}
{%- for turn in turns -%}
    {%- set text = turn["content"] if turn["content"] is string else turn["content"] | tojson -%}
    {%- if turn["role"] == "tool" -%}
        {%- set text = "<|tool_response_start|>" + text + "<|tool_response_end|>" -%}
    {%- endif -%}
    {{- "<|im_start|>" + turn["role"] + "\\n" + text + "<|im_end|>\\n" -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- "<|im_start|>assistant\\n" -}}
{%- endif -%}
"""


def make_config():
    """Every size keeps the ratios that matter to an engine: 64-wide heads, widths in whole quantisation blocks."""
    attention_layers = (2, 6, 8)                      # uneven gaps, as in LFM2-8B-A1B
    return Lfm2MoeConfig(
        architectures=["Lfm2MoeForCausalLM"], vocab_size=4096, hidden_size=256, num_hidden_layers=10,
        layer_types=["full_attention" if i in attention_layers else "conv" for i in range(10)],
        num_attention_heads=4, num_key_value_heads=2, conv_L_cache=3, conv_bias=False, intermediate_size=512,
        num_dense_layers=2, num_experts=16, num_experts_per_tok=4, moe_intermediate_size=32, norm_topk_prob=True,
        use_expert_bias=True, routed_scaling_factor=1.0, norm_eps=1e-5, max_position_embeddings=4096,
        rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0}, tie_word_embeddings=True,
        initializer_range=0.03, pad_token_id=PAD, bos_token_id=BOS, eos_token_id=EOS, dtype="bfloat16")


# --- tokenizer -----------------------------------------------------------------------------------------------------

def train_tokenizer(texts, vocab_size):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=SPECIAL_TOKENS, show_progress=False,
                                  initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|startoftext|>:0 $A:0", pair="<|startoftext|>:0 $A:0 <|startoftext|>:1 $B:1",
        special_tokens=[("<|startoftext|>", BOS)])
    assert tokenizer.get_vocab_size() == vocab_size
    assert [tokenizer.id_to_token(i) for i in range(len(SPECIAL_TOKENS))] == SPECIAL_TOKENS
    return tokenizer


def save_tokenizer(tokenizer, out):
    tokenizer.save(str(out / "tokenizer.json"))
    write_json(out / "tokenizer_config.json", {
        "add_bos_token": True, "add_eos_token": False, "add_prefix_space": False, "bos_token": "<|startoftext|>",
        "clean_up_tokenization_spaces": False, "eos_token": "<|im_end|>", "legacy": False, "model_max_length": 4096,
        "pad_token": "<|pad|>", "tokenizer_class": "PreTrainedTokenizerFast", "use_default_system_prompt": False})
    (out / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


# --- data ----------------------------------------------------------------------------------------------------------

class Rows:
    """Endless rows [BOS, n tokens]: each epoch shuffles all documents, joins them and cuts the stream.

    Documents carry their own BOS, chapters end with <|endoftext|>. The extra BOS at the head of each row is what
    makes a window that starts in mid-text, as perplexity measures use, an ordinary thing for the model.
    """

    def __init__(self, documents, length, seed):
        self.documents, self.length = documents, length
        self.rng = random.Random(seed)
        self.epochs, self.rows = 0, []

    def refill(self):
        order = list(range(len(self.documents)))
        self.rng.shuffle(order)
        stream = np.concatenate([self.documents[i] for i in order])
        start = self.rng.randrange(self.length)
        count = (len(stream) - start) // self.length
        rows = stream[start:start + count * self.length].reshape(count, self.length)
        rows = np.concatenate([np.full((count, 1), BOS, dtype=np.int64), rows], axis=1)
        self.rows = list(rows)
        self.rng.shuffle(self.rows)
        self.epochs += 1

    def batch(self, size):
        while len(self.rows) < size:
            self.refill()
        picked, self.rows = self.rows[:size], self.rows[size:]
        return torch.from_numpy(np.stack(picked))


# --- a quicker forward pass ----------------------------------------------------------------------------------------
# Same sums as in transformers, arranged so that two CPU cores are kept busy; checked by `assert_same_as_transformers`.

class Spread(torch.autograd.Function):
    """One row for each (token, expert) pair, in the order of `order`; the gradient is a gather and a sum, which is
    quicker than the scatter-add that autograd would choose."""

    @staticmethod
    def forward(ctx, rows, order, inverse, top_k):
        ctx.save_for_backward(inverse)
        ctx.top_k = top_k
        return rows.index_select(0, order // top_k)

    @staticmethod
    def backward(ctx, grad):
        (inverse,) = ctx.saved_tensors
        return grad.index_select(0, inverse).view(-1, ctx.top_k, grad.shape[1]).sum(1), None, None, None


def grouped_experts(self, hidden, chosen, weights):
    """Sorts the (token, expert) pairs by expert, runs each expert once over its rows, sorts back and adds."""
    tokens, top_k = chosen.shape
    flat = chosen.reshape(-1)
    order = torch.argsort(flat, stable=True)
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(order.numel())
    counts = torch.bincount(flat, minlength=self.num_experts).tolist()

    rows = Spread.apply(hidden, order, inverse, top_k).split(counts)
    gains = Spread.apply(weights.reshape(-1, 1), order, inverse, 1).split(counts)
    outputs = []
    for part, gain, gate_up, down in zip(rows, gains, self.gate_up_proj.unbind(0), self.down_proj.unbind(0)):
        gate, up = F.linear(part, gate_up).chunk(2, dim=-1)
        outputs.append(F.linear(F.silu(gate) * up * gain, down))
    return Spread.apply(torch.cat(outputs), inverse, order, 1).view(tokens, top_k, -1).sum(1)


def short_conv(self, hidden_states, past_key_values=None, attention_mask=None, **kwargs):
    """The gated convolution as three shifted products; whole rows only, no cache."""
    b, c, x = self.in_proj(hidden_states).chunk(3, dim=-1)
    s = b * x
    taps = self.conv.weight[:, 0, :]
    length = s.shape[1]
    mixed = s * taps[:, 2]
    mixed = mixed + F.pad(s, (0, 0, 1, 0))[:, :length] * taps[:, 1]
    mixed = mixed + F.pad(s, (0, 0, 2, 0))[:, :length] * taps[:, 0]
    return self.out_proj(c * mixed)


def rms_norm(self, hidden_states):
    return F.rms_norm(hidden_states, (hidden_states.shape[-1],), self.weight, self.variance_epsilon)


QUICK = [(modeling_lfm2_moe.Lfm2MoeExperts, grouped_experts), (modeling_lfm2_moe.Lfm2MoeShortConv, short_conv),
         (modeling_lfm2_moe.Lfm2MoeRMSNorm, rms_norm)]
ORIGINAL = [(cls, cls.forward) for cls, _ in QUICK]


def use(forwards):
    for cls, forward in forwards:
        cls.forward = forward


def assert_same_as_transformers(model, rows):
    """Loss and every gradient of the quick forward pass agree with the original one."""
    grads, losses = [], []
    for forwards in (ORIGINAL, QUICK):
        use(forwards)
        model.zero_grad()
        loss = next_token_loss(model, rows)
        loss.backward()
        losses.append(loss.item())
        grads.append({name: p.grad.clone() for name, p in model.named_parameters()})
    model.zero_grad()
    worst = max((grads[0][n] - grads[1][n]).norm() / (grads[0][n].norm() + 1e-12) for n in grads[0])
    print(f"quick forward pass: loss differs by {abs(losses[0] - losses[1]):.2e}, gradients by {worst:.2e} (relative)")
    assert abs(losses[0] - losses[1]) < 1e-5 and worst < 1e-3


# --- training ------------------------------------------------------------------------------------------------------

def next_token_loss(model, rows):
    hidden = model.model(input_ids=rows[:, :-1], use_cache=False).last_hidden_state
    return F.cross_entropy(model.lm_head(hidden).flatten(0, 1), rows[:, 1:].flatten())


class LoadBalancer:
    """Counts how often each expert is chosen and moves the selection biases against the imbalance."""

    def __init__(self, model):
        self.blocks = [layer.feed_forward for layer in model.model.layers if hasattr(layer.feed_forward, "experts")]
        self.counts = [torch.zeros(block.experts.num_experts) for block in self.blocks]
        for index, block in enumerate(self.blocks):
            block.gate.register_forward_hook(self.counter(index))

    def counter(self, index):
        def count(module, inputs, outputs):
            self.counts[index] += torch.bincount(outputs[2].reshape(-1), minlength=module.num_experts)
        return count

    @torch.no_grad()
    def update(self, rate):
        """Returns the largest share of a layer's load on one expert, in units of the fair share."""
        worst = 0.0
        for block, counts in zip(self.blocks, self.counts):
            worst = max(worst, (counts.max() / counts.mean()).item())
            block.expert_bias += rate * torch.sign(counts.mean() - counts)
            counts.zero_()
        return worst

    @torch.no_grad()
    def centre(self):
        """A common offset of a layer's biases changes no choice; take it out once, at the end."""
        for block in self.blocks:
            block.expert_bias -= block.expert_bias.mean()


def make_optimizer(model, lr):
    decay = [p for p in model.parameters() if p.dim() >= 2]
    plain = [p for p in model.parameters() if p.dim() < 2]
    return torch.optim.AdamW([{"params": decay, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}],
                             lr=lr, betas=(0.9, 0.95), eps=1e-8, fused=True)


def rate_at(progress):
    """Share of the peak rate: 2 % warm-up, then a cosine down to 2 %."""
    if progress < 0.02:
        return 0.05 + 0.95 * progress / 0.02
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (progress - 0.02) / 0.98))


@torch.no_grad()
def held_out_loss(model, ids, length=512, windows=8):
    """A quick look while training: the first windows of the held-out text."""
    rows = [torch.tensor([BOS] + ids[i * length:(i + 1) * length]) for i in range(windows)]
    return next_token_loss(model, torch.stack(rows)).item()


def train(model, rows, held_out, args):
    optimizer, balancer = make_optimizer(model, args.lr), LoadBalancer(model)
    started, saved, step, shown = time.monotonic(), time.monotonic(), 0, []
    while True:
        spent = (time.monotonic() - started) / 60
        progress = step / args.steps if args.steps else spent / args.minutes
        if progress >= 1:
            break
        rate = rate_at(min(progress, 1.0))
        for group in optimizer.param_groups:
            group["lr"] = args.lr * rate
        loss = next_token_loss(model, rows.batch(args.batch))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        worst = balancer.update(args.bias_rate * max(rate, 0.1))
        step += 1
        shown.append(loss.item())
        if step % args.report == 0:
            look = held_out_loss(model, held_out)
            for counts in balancer.counts:
                counts.zero_()
            print(f"step {step}  {spent:.1f} min  epoch {rows.epochs}  loss {np.mean(shown):.3f}  held-out {look:.3f}"
                  f" (ppl {math.exp(look):.1f})  busiest expert {worst:.2f}x  lr {args.lr * rate:.1e}", flush=True)
            shown = []
        if args.scratch and time.monotonic() - saved > 240:
            saved = time.monotonic()
            export_weights(model, Path(args.scratch))
    balancer.centre()
    return {"steps": step, "minutes": round((time.monotonic() - started) / 60, 1), "epochs": rows.epochs,
            "tokens": step * args.batch * args.length}


# --- export --------------------------------------------------------------------------------------------------------

def on_disk_tensors(model):
    """Name -> tensor as a released checkpoint holds them: one tensor per expert matrix, no copy of the tied head."""
    out = {}
    for name, value in model.state_dict().items():
        value = value.detach()
        if name == "lm_head.weight":
            continue
        if name.endswith("experts.gate_up_proj"):
            stem, width = name.removesuffix("gate_up_proj"), value.shape[1] // 2
            for e in range(value.shape[0]):
                out[f"{stem}{e}.w1.weight"], out[f"{stem}{e}.w3.weight"] = value[e, :width], value[e, width:]
        elif name.endswith("experts.down_proj"):
            stem = name.removesuffix("down_proj")
            for e in range(value.shape[0]):
                out[f"{stem}{e}.w2.weight"] = value[e]
        else:
            out[name] = value
    keep = torch.float32
    return {n: v.to(keep if n.endswith("expert_bias") else torch.bfloat16).contiguous().clone()
            for n, v in sorted(out.items())}


def export_weights(model, out):
    out.mkdir(parents=True, exist_ok=True)
    save_file(on_disk_tensors(model), str(out / "model.safetensors"), metadata={"format": "pt"})
    model.config.dtype = torch.bfloat16            # of the file, whatever the model was loaded as
    model.config.save_pretrained(out)


@torch.no_grad()
def assert_round_trip(model, out, rows):
    """What from_pretrained reads back is the model in memory, rounded to bfloat16."""
    loaded, report = Lfm2MoeForCausalLM.from_pretrained(out, dtype=torch.float32, output_loading_info=True)
    assert not any(report[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    rounded = {n: v if n.endswith("expert_bias") else v.bfloat16().float() for n, v in model.state_dict().items()}
    model.load_state_dict(rounded)
    ours, theirs = (m(input_ids=rows[:, :-1], use_cache=False).logits for m in (model, loaded))
    print(f"saved against memory (rounded): logits differ by at most {(ours - theirs).abs().max():.2e}")
    assert torch.allclose(ours, theirs, atol=1e-4)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write, e.g. models/sample")
    parser.add_argument("--scratch", help="folder for the weights every four minutes while training")
    parser.add_argument("--resume", type=Path, help="folder with weights to start from, e.g. the scratch folder")
    parser.add_argument("--minutes", type=float, default=50, help="wall time to train for")
    parser.add_argument("--steps", type=int, default=0, help="train this many steps instead")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--batch", type=int, default=4, help="rows in a step")
    parser.add_argument("--length", type=int, default=512, help="tokens in a row")
    parser.add_argument("--lr", type=float, default=2.5e-3)
    parser.add_argument("--bias-rate", type=float, default=2e-3, help="step of the expert bias")
    parser.add_argument("--conversations", type=int, default=4500)
    parser.add_argument("--report", type=int, default=100, help="steps between two lines of progress")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)

    corpus = sample_corpus.build(args.seed, args.conversations)
    (args.out / "held-out.txt").write_text(corpus.held_out, encoding="utf-8")
    config = make_config()
    tokenizer = train_tokenizer(corpus.documents, config.vocab_size)
    save_tokenizer(tokenizer, args.out)
    write_json(args.out / "generation_config.json", {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD})

    texts = [sample_corpus.BOS + d + sample_corpus.EOT for d in corpus.documents] + list(corpus.conversations)
    encoded = tokenizer.encode_batch(texts, add_special_tokens=False)
    documents = [np.array(e.ids, dtype=np.int64) for e in encoded]
    held_out = tokenizer.encode(corpus.held_out, add_special_tokens=False).ids
    rows = Rows(documents, args.length, args.seed + bool(args.resume))     # a resumed run reads on in another order

    model = (Lfm2MoeForCausalLM.from_pretrained(args.resume, dtype=torch.float32) if args.resume
             else Lfm2MoeForCausalLM(config).float())
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {sum(map(len, documents)):,} tokens to train on, "
          f"{len(held_out):,} held out", flush=True)
    if not args.resume:      # a trained router has near ties that rounding decides, which moves whole gradients
        assert_same_as_transformers(model, rows.batch(2))
    use(QUICK)
    summary = train(model, rows, held_out, args)
    use(ORIGINAL)

    export_weights(model, args.out)
    assert_round_trip(model, args.out, rows.batch(2))
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
