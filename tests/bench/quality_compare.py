#!/usr/bin/python3
"""Perplexity of the sample model in every weight format: against its f32 weights, and against llama.cpp on the same file.

Writes the model as GGUF in each type, starts `millrace serve` on it and asks for the log-probabilities of the held-out
text by /v1/completions (echo); llama-perplexity reads the same file and text. Both score what llama-perplexity scores:
windows of --context tokens that begin with BOS, the second half of each. Formats that only Millrace has (its own
4- and 8-bit quantiser, bf16 safetensors) have no peer. Appends one JSON object per figure to --output.

  tests/bench/quality_compare.py --llama-cpp BUILD/bin
"""

import argparse
import datetime
import json
import math
import pathlib
import re
import subprocess
import sys
import tempfile
import urllib.request

from serve_bench import ROOT, cpu_name

GGUF_TYPES = ["f32", "f16", "bf16", "q8_0", "q6_k", "q5_k", "q4_k", "q4_1", "q4_0"]
# name -> --set model.cpu_weights, on the folder as released
OWN_FORMATS = {"safetensors-bf16": "auto", "safetensors-p8": "p8", "safetensors-p4": "p4"}


class Server:
    def __init__(self, binary: str, model: pathlib.Path, extra: list[str]):
        self.process = subprocess.Popen([binary, "serve", "--embedded", "--model", str(model), "--port", "0", "--set",
                                         "gateway.cell_port=0", *extra], stdout=subprocess.PIPE,
                                        stderr=subprocess.DEVNULL, text=True)
        for line in self.process.stdout:
            if found := re.search(r"serves (\S+) at (http://\S+)", line):
                self.model, self.url = found.groups()
                return
        raise SystemExit(f"millrace serve ended before it was ready with {model}")

    def post(self, path: str, body: dict) -> dict:
        request = urllib.request.Request(self.url + path, json.dumps({"model": self.model, **body}).encode(),
                                         {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=600) as response:
            return json.load(response)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(60)


def ours(binary: str, model: pathlib.Path, text: str, context: int, extra: list[str]) -> float:
    with Server(binary, model, extra) as server:
        tokens = server.post("/tokenize", {"prompt": text})["tokens"]
        total, count = 0.0, 0
        for begin in range(0, len(tokens) - context + 1, context):
            window = [tokens[0], *tokens[begin + 1:begin + context]]
            answer = server.post("/v1/completions", {"prompt": window, "echo": True, "max_tokens": 0, "logprobs": 0})
            scored = answer["choices"][0]["logprobs"]["token_logprobs"][context // 2 + 1:]
            total -= math.fsum(scored)
            count += len(scored)
    return math.exp(total / count)


def llama_cpp(folder: str, model: pathlib.Path, text: pathlib.Path, context: int, threads: int) -> float:
    run = subprocess.run([str(pathlib.Path(folder) / "llama-perplexity"), "-m", str(model), "-f", str(text), "-c",
                          str(context), "-t", str(threads)], capture_output=True, text=True)
    found = re.search(r"Final estimate: PPL = ([\d.]+)", run.stdout + run.stderr)
    if run.returncode or not found:
        raise SystemExit(f"llama-perplexity: status {run.returncode}\n{run.stderr[-2000:]}")
    return float(found.group(1))


def records(args, measured: dict[str, dict[str, float]]) -> list[dict]:
    commit = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], capture_output=True, text=True,
                            check=True).stdout.strip()
    peer = " --llama-cpp bin" if args.llama_cpp else ""
    common = {"device": cpu_name(), "date": datetime.date.today().isoformat(), "commit": commit,
              "command": f"python3 tests/bench/quality_compare.py{peer} --context {args.context}"}
    base = measured["f32"]["millrace"]
    lines = []
    for name, values in measured.items():
        for engine, value in values.items():
            line = {"bench": "quality", "case": f"{args.model.name}-{name}-{engine}", "metric": "perplexity",
                    "value": round(value, 4), "unit": "", "spread": 0, **common}
            if engine == "millrace":
                line["ratio_vs_f32"] = round(value / base, 5)
                if "llama.cpp" in values:
                    line["ratio_vs_llama_cpp"] = round(value / values["llama.cpp"], 5)
            lines.append(line)
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama-cpp", default="", help="folder with llama-perplexity; without it Millrace alone")
    parser.add_argument("--binary", default=str(ROOT / "build/cpu/bin/millrace"))
    parser.add_argument("--model", type=pathlib.Path, default=ROOT / "models/sample", help="Hugging Face folder")
    parser.add_argument("--text", type=pathlib.Path, default=ROOT / "models/sample/held-out.txt")
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2, help="of llama.cpp")
    parser.add_argument("--types", nargs="+", choices=[*GGUF_TYPES, *OWN_FORMATS], default=[*GGUF_TYPES, *OWN_FORMATS])
    parser.add_argument("--output", default="", help="file to append to (default: none)")
    args = parser.parse_args()
    text = args.text.read_text(encoding="utf-8")
    measured: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name in dict.fromkeys(["f32", *args.types]):
            if name in OWN_FORMATS:
                extra = ["--set", f"model.cpu_weights={OWN_FORMATS[name]}"]
                measured[name] = {"millrace": ours(args.binary, args.model, text, args.context, extra)}
            else:
                file = pathlib.Path(scratch) / f"{name}.gguf"
                subprocess.run([sys.executable, str(ROOT / "scripts/make_random_checkpoint.py"), "--convert",
                                str(args.model), "--quant", name, "--out", str(file)], check=True,
                               stdout=subprocess.DEVNULL)
                if args.llama_cpp:
                    measured[name] = {"llama.cpp": llama_cpp(args.llama_cpp, file, args.text, args.context, args.threads)}
                measured.setdefault(name, {})["millrace"] = ours(args.binary, file, text, args.context, [])
                file.unlink()
            print(f"{name:18}" + "".join(f"  {k} {v:.4f}" for k, v in measured[name].items()), flush=True)
    lines = records(args, measured)
    for line in lines:
        extra = " ".join(f"{k}={line[k]}" for k in ("ratio_vs_f32", "ratio_vs_llama_cpp") if k in line)
        print(f"{line['case']:34} {line['value']:9.4f} {extra}")
    if args.output:
        with pathlib.Path(args.output).open("a", encoding="utf-8") as out:
            out.writelines(json.dumps(line) + "\n" for line in lines)
    return 0


if __name__ == "__main__":
    sys.exit(main())
