#!/usr/bin/env python3
"""Millrace and llama.cpp on this machine's CPU, in turns, on the same GGUF file.

Each round runs both engines once, in changing order, each in a process of its own, and measures the machine's ceilings
(memory read, int8 dot products) beside them. Prefill: prompts of --prefill tokens to the first token (llama-bench pp).
Decode: tokens of all --streams together while all of them run (llama-bench tg, llama-batched-bench). Memory is the
largest resident set of the process; pages that came from the disk while it ran are counted, and each engine's file is
read once before it starts. Appends one JSON object per figure to --output: median, spread, the ratio to
llama.cpp's median of the same run, and the share of what the weights' bytes or the int8 operations allow.

  tests/bench/cpu_compare.py --llama-cpp BUILD/bin --model MODEL.gguf [--packed PACKED.gguf]
"""

import argparse
import dataclasses
import datetime
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile

from serve_bench import ROOT, cpu_name


@dataclasses.dataclass
class Ran:
    text: str
    peak: int  # resident bytes
    faults: int  # pages that had to come from the disk


def run(command: list[str]) -> Ran:
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=out, stderr=errors)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        errors.seek(0)
        if process.returncode != 0:
            sys.exit(f"{' '.join(command)}: status {process.returncode}\n{errors.read()[-2000:]}")
        # llama.cpp's tools log their tables to one or the other.
        return Ran(out.read() + "\n" + errors.read(), usage.ru_maxrss * 1024, usage.ru_majflt)


def warm(path: str):
    """Into the page cache, as after a start before this one; a model and its packed twin may not fit at once."""
    with open(path, "rb", buffering=0) as file:
        while file.read(1 << 24):
            pass


def millrace(args) -> dict:
    command = [args.millrace, "engine-bench", "--model", args.packed or args.model, "--runs", str(args.runs),
               "--prefill", args.prefill, "--streams", args.streams, "--prompt-tokens", "32",
               "--decode-tokens", str(args.tokens), "--set", "device.backend=cpu",
               "--set", f"grid.threads_per_rank={args.threads}",
               "--set", "cache.max_sequences=32", "--set", "cache.max_context_tokens=4096",
               "--set", "cache.prefix=false",  # which would keep what no run here asks for again
               "--set", f"scheduler.prefill_chunk_tokens={args.chunk}", "--set", "scheduler.max_gap_ms=0",
               "--set", f"scheduler.max_step_tokens={args.chunk}"]
    warm(args.packed or args.model)
    ran = run(command)
    report = json.loads(ran.text.strip().splitlines()[0])
    figures = {c["case"]: (statistics.median(c["tokens_per_s"]), "tokens/s") for c in report["cases"]}
    figures["start"] = (report["start_seconds"], "s")
    figures["resident"] = (ran.peak / 2**30, "GiB")
    figures["major-faults"] = (ran.faults, "pages")
    figures["resident-at-start"] = (report["memory_at_start"]["VmHWM"] / 2**30, "GiB")
    figures["anonymous"] = (report["memory"]["RssAnon"] / 2**30, "GiB")
    return {"figures": figures, "work": report["work"], "mode": report["numeric_mode"]}


def llama_cpp(args) -> dict:
    figures = {}
    folder = pathlib.Path(args.llama_cpp)
    common = ["-m", args.model, "-t", str(args.threads)]
    lengths = [n for n in args.prefill.split(",") if n]
    warm(args.model)
    ran = run([str(folder / "llama-bench"), *common, "-p", ",".join(lengths), "-n", str(args.tokens),
               "-r", str(args.runs), "-o", "json"])
    peak, faults = ran.peak, ran.faults
    for test in json.loads(ran.text[ran.text.index("["):ran.text.rindex("]") + 1]):
        name = f"tg{test['n_gen']}x1" if test["n_gen"] else f"pp{test['n_prompt']}"
        figures[name] = (statistics.median(test["samples_ts"]), "tokens/s")
    streams = [n for n in args.streams.split(",") if n != "1"]
    most = max(map(int, streams), default=0)
    if most:
        ran = run([str(folder / "llama-batched-bench"), *common, "-c", str(most * (32 + args.tokens)),
                   "-npp", "32", "-ntg", str(args.tokens), "-npl", ",".join(streams), "--output-format", "jsonl"])
        peak, faults = max(peak, ran.peak), faults + ran.faults
        for line in ran.text.splitlines():
            if line.startswith("{"):
                test = json.loads(line)
                figures[f"tg{test['tg']}x{test['pl']}"] = (test["speed_tg"], "tokens/s")
        if load := re.search(r"load time =\s+([\d.]+) ms", ran.text):
            figures["start"] = (float(load.group(1)) / 1000, "s")
    figures["resident"] = (peak / 2**30, "GiB")
    figures["major-faults"] = (faults, "pages")
    return {"figures": figures}


def ceilings(args) -> dict:
    return json.loads(run([args.kernels_bench, str(args.threads), "ceilings"]).text.strip().splitlines()[0])


def bytes_per_step(work: dict, streams: int) -> float:
    """Of weights, when each sequence's experts are drawn evenly and independently."""
    touched = 0.0
    if work["experts"]:
        touched = work["experts"] * (1 - (1 - work["top_k"] / work["experts"]) ** streams)
    return work["fixed_bytes"] + work["moe_layers"] * touched * work["expert_bytes"]


def share_of_floor(case: str, value: float, work: dict, ceiling: dict) -> tuple[str, float] | None:
    if found := re.fullmatch(r"tg\d+x(\d+)", case):
        streams = int(found.group(1))
        limit = ceiling["read_gb_per_s"] * 1e9 / bytes_per_step(work, streams) * streams
        return "of_byte_floor", value / limit
    if case.startswith("pp"):
        return "of_int8_ceiling", value * work["prefill_ops_per_token"] / (ceiling["int8_gop_per_s"] * 1e9)
    return None


def shown_command() -> str:
    """As typed, with paths shortened to their last part."""
    return "python3 tests/bench/cpu_compare.py " + " ".join(a.rstrip("/").rsplit("/", 1)[-1] for a in sys.argv[1:])


def record(args, rounds: list[dict]) -> list[dict]:
    commit = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], capture_output=True, text=True,
                            check=True).stdout.strip()
    common = {"device": f"{cpu_name()}, {args.threads} threads", "date": datetime.date.today().isoformat(),
              "commit": commit, "command": shown_command()}
    model = args.label or pathlib.Path(args.model).stem
    ceiling = {k: statistics.median(r["ceilings"][k] for r in rounds) for k in rounds[0]["ceilings"]}
    lines = [{"bench": "cpu", "case": f"{model}-ceilings", "metric": key, "value": round(value, 1),
              "unit": "GB/s" if key.startswith("read") else "Gop/s",
              "spread": [round(f(r["ceilings"][key] for r in rounds), 1) for f in (min, max)], **common}
             for key, value in ceiling.items()]
    medians = {}
    for engine in ("llama.cpp", "millrace"):
        names = list(dict.fromkeys(name for r in rounds if engine in r for name in r[engine]["figures"]))
        for name in names:
            values = [r[engine]["figures"][name][0] for r in rounds if engine in r and name in r[engine]["figures"]]
            unit = next(r[engine]["figures"][name][1] for r in rounds if engine in r and name in r[engine]["figures"])
            median = statistics.median(values)
            medians[engine, name] = median
            line = {"bench": "cpu", "case": f"{model}-{name}-{engine}", "metric": name, "value": round(median, 3),
                    "unit": unit, "spread": [round(min(values), 3), round(max(values), 3)], "samples": len(values)}
            if engine == "millrace":
                line["mode"] = rounds[0]["millrace"]["mode"]
                if ("llama.cpp", name) in medians:
                    line["ratio_vs_llama_cpp"] = round(median / medians["llama.cpp", name], 3)
                if share := share_of_floor(name, median, rounds[0]["millrace"]["work"], ceiling):
                    line[share[0]] = round(share[1], 3)
            lines.append({**line, **common})
    return lines


def show(lines: list[dict]):
    for line in lines:
        extra = " ".join(f"{k}={line[k]}" for k in ("ratio_vs_llama_cpp", "of_byte_floor", "of_int8_ceiling") if k in line)
        print(f"{line['case']:44} {line['value']:10.2f} {line['unit']:9} {line['spread']} {extra}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama-cpp", default="", help="folder with llama-bench and llama-batched-bench; without it"
                        " Millrace runs alone")
    parser.add_argument("--millrace", default=str(ROOT / "build/cpu/bin/millrace"))
    parser.add_argument("--kernels-bench", default=str(ROOT / "build/cpu/tests/kernels/kernels_bench"))
    parser.add_argument("--model", required=True, help="the GGUF file for both")
    parser.add_argument("--packed", default="", help="what `millrace pack` made of it, for Millrace")
    parser.add_argument("--label", default="", help="of the model in the records (default: the file's name)")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--prefill", default="512,2048")
    parser.add_argument("--streams", default="1,8,16,32")
    parser.add_argument("--tokens", type=int, default=32, help="decoded by each stream")
    parser.add_argument("--chunk", type=int, default=512, help="tokens of a prefill step, as llama.cpp's micro-batch")
    parser.add_argument("--runs", type=int, default=1, help="of each case in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--keep", default="", help="file that keeps each round's figures: those already in it count too,"
                        " so that a long comparison can be made in several goes")
    parser.add_argument("--output", default="", help="file to append to (default: none)")
    args = parser.parse_args()
    keep = pathlib.Path(args.keep) if args.keep else None
    rounds = [json.loads(line) for line in keep.read_text().splitlines()] if keep and keep.exists() else []
    for i in range(args.rounds):
        one = {"ceilings": ceilings(args)}
        engines = [("millrace", millrace)] + ([("llama.cpp", llama_cpp)] if args.llama_cpp else [])
        for name, engine in engines if len(rounds) % 2 == 0 else reversed(engines):
            one[name] = engine(args)
        rounds.append(one)
        if keep:
            with keep.open("a", encoding="utf-8") as out:
                out.write(json.dumps(one) + "\n")
        print(f"round {i + 1} of {args.rounds}: " + json.dumps({k: v.get("figures", v) for k, v in one.items()}),
              file=sys.stderr, flush=True)
    lines = record(args, rounds)
    show(lines)
    if args.output:
        with pathlib.Path(args.output).open("a", encoding="utf-8") as out:
            out.writelines(json.dumps(line) + "\n" for line in lines)


if __name__ == "__main__":
    main()
