#!/usr/bin/env python3
"""Writes a checkpoint with random weights of any LFM2 or LFM2-MoE shape, or turns an HF folder into a GGUF.

    scripts/make_random_checkpoint.py --preset tiny-moe --out /tmp/tiny                        # HF folder
    scripts/make_random_checkpoint.py --preset tiny-moe --format gguf --quant q4_k_m --out /tmp/tiny.gguf
    scripts/make_random_checkpoint.py --preset 24b --format gguf --quant q4_0 --out /tmp/24b.gguf
    scripts/make_random_checkpoint.py --preset 24b --format gguf --quant q4_0 --dry-run
    scripts/make_random_checkpoint.py --convert models/sample --quant q8_0 --out /tmp/sample.gguf

Random weights serve tests and measurements of speed and memory, never of quality; they are scaled so that activations
stay of the order of 1. The same arguments give the same bytes under every numpy: see RandomSource in
checkpoint_writer.py. Needs python3 and numpy only (Debian: python3-numpy). Memory use does not grow with the model.
"""
import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

import checkpoint_writer as writer

DRAW_ABOVE = 1_000_000_000      # parameters from which quantised blocks are drawn: quantising 24B would take an hour
OVERRIDES = {"hidden": int, "layers": int, "heads": int, "kv_heads": int, "head_dim": int, "ff": int, "vocab": int,
             "dense_layers": int, "num_experts": int, "top_k": int, "expert_ff": int, "rope_theta": float,
             "norm_eps": float, "context": int, "ff_multiplier": float, "ff_multiple_of": int}


def parse_arguments(argv):
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0], epilog="examples:" + __doc__.split("\n\n")[1],
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    kind = p.add_mutually_exclusive_group(required=True)
    kind.add_argument("--preset", choices=sorted(writer.PRESETS))
    kind.add_argument("--convert", type=Path, metavar="DIR", help="write the weights of this HF folder as GGUF")
    p.add_argument("--out", type=Path, help="folder (safetensors) or file (gguf)")
    p.add_argument("--format", choices=["safetensors", "gguf"], help="default: safetensors; gguf with --convert")
    p.add_argument("--dry-run", action="store_true", help="print names, shapes and sizes, write nothing")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--gain", type=float, default=1.0, help="factor on all projections but the router")
    p.add_argument("--tokenizer", default=None, metavar="DIR", help="HF folder to take the tokenizer from, or 'builtin' "
                   "(bytes and a few merges), or 'none'; default: models/sample if its vocabulary fits, else builtin")
    p.add_argument("--name", help="general.name of a GGUF")

    hf = p.add_argument_group("safetensors")
    hf.add_argument("--dtype", choices=["bf16", "f16", "f32"], default="bf16")
    hf.add_argument("--experts", choices=["per-expert", "packed"], default="per-expert",
                    help="one tensor per expert matrix, as released, or stacked as transformers 5 keeps them")
    hf.add_argument("--shard-mb", type=int, help="split into files of at most this size, with an index")
    hf.add_argument("--config-style", choices=["top-level", "nested"], default="top-level",
                    help="where config.json holds rope_theta")

    gguf = p.add_argument_group("gguf")
    gguf.add_argument("--quant", choices=writer.QUANTS, default="q4_0")
    gguf.add_argument("--head-quant", choices=sorted(writer.FORMATS), help="format of the output head or tied embedding")
    blocks = gguf.add_mutually_exclusive_group()
    blocks.add_argument("--draw-blocks", action="store_true", help="random blocks instead of quantised random weights "
                        f"(quick; the default above {DRAW_ABOVE:,} parameters)")
    blocks.add_argument("--quantise", action="store_true", help="quantise random weights whatever the size")

    sizes = p.add_argument_group("sizes (override the preset)")
    for name, kind in OVERRIDES.items():
        sizes.add_argument("--" + name.replace("_", "-"), type=kind)
    sizes.add_argument("--attention", metavar="I,J,...", help="indices of the attention layers")
    sizes.add_argument("--auto-adjust-ff", action=argparse.BooleanOptionalAction, help="dense models only")
    tied = sizes.add_mutually_exclusive_group()
    tied.add_argument("--tied", action="store_true", default=None)
    tied.add_argument("--untied", action="store_false", dest="tied")

    args = p.parse_args(argv)
    args.format = args.format or ("gguf" if args.convert else "safetensors")
    if args.convert and args.format != "gguf":
        p.error("--convert writes GGUF only")
    if not args.dry_run and not args.out:
        p.error("--out is needed")
    return args


def shape_from(args):
    if args.convert:
        return writer.shape_of_folder(args.convert)
    changes = {n: getattr(args, n) for n in (*OVERRIDES, "tied", "auto_adjust_ff") if getattr(args, n) is not None}
    if args.num_experts is not None:                 # --experts is the layout of the expert tensors
        changes["experts"] = changes.pop("num_experts")
    if args.attention is not None:
        changes["attention"] = tuple(int(i) for i in args.attention.split(",") if i)
    shape = replace(writer.PRESETS[args.preset], **changes)
    check(shape)
    return shape


def check(shape):
    """Refuses shapes that no engine could run, with the reason."""
    problems = []
    if any(i not in range(shape.layers) for i in shape.attention):
        problems.append(f"attention layers {shape.attention} outside 0..{shape.layers - 1}; give --attention")
    if shape.heads % shape.kv_heads:
        problems.append(f"{shape.heads} heads are no multiple of {shape.kv_heads} KV heads")
    if shape.moe and not 0 < shape.top_k <= shape.experts:
        problems.append(f"top-k {shape.top_k} of {shape.experts} experts")
    if shape.moe and not shape.expert_ff:
        problems.append("--expert-ff is needed")
    if problems:
        sys.exit("error: " + "; ".join(problems))


def tokenizer_from(args, shape):
    if args.tokenizer == "none":
        return None
    if args.tokenizer == "builtin":
        tokenizer = writer.Tokenizer.builtin()
    elif args.tokenizer or args.convert:
        tokenizer = writer.Tokenizer.from_folder(Path(args.tokenizer or args.convert))
    else:
        sample = Path(__file__).resolve().parent.parent / "models" / "sample"
        tokenizer = writer.Tokenizer.from_folder(sample) if (sample / "tokenizer.json").exists() else None
        if tokenizer is None or len(tokenizer.tokens) > shape.vocab:
            tokenizer = writer.Tokenizer.builtin()
    if len(tokenizer.tokens) > shape.vocab:
        sys.exit(f"error: the tokenizer has {len(tokenizer.tokens)} entries, the model only {shape.vocab}")
    return tokenizer


def print_plan(shape, tensors):
    total = 0
    for t in tensors:
        print(f"{t.name}  {list(t.shape)}  {t.format}  {t.bytes}")
        total += t.bytes
    print(f"{len(tensors)} tensors, {total} tensor bytes, {writer.parameter_count(shape)} parameters")


def main(argv=None):
    args = parse_arguments(argv)
    shape = shape_from(args)
    gguf = args.format == "gguf"
    if args.dry_run:
        tensors = writer.gguf_tensors(shape, args.quant, args.head_quant) if gguf \
            else writer.hf_tensors(shape, args.dtype, args.experts)
        print_plan(shape, list(tensors))
        return
    started = time.monotonic()
    source = writer.FolderSource(args.convert) if args.convert else writer.RandomSource(args.seed)
    tokenizer = tokenizer_from(args, shape)
    if gguf:
        draw = args.draw_blocks or (writer.parameter_count(shape) > DRAW_ABOVE and not args.quantise)
        name = args.name or (args.convert.name if args.convert else f"{args.preset} random weights")
        writer.write_gguf(args.out, shape, source, args.quant, args.head_quant, tokenizer, name,
                          draw_blocks=draw and not args.convert, gain=args.gain)
    else:
        writer.write_hf_folder(args.out, shape, source, args.dtype, args.experts, tokenizer, args.shard_mb,
                               args.gain, args.config_style)
    print(f"{args.out}: {writer.parameter_count(shape):,} parameters in {time.monotonic() - started:.1f} s")


if __name__ == "__main__":
    main()
