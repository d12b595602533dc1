#!/usr/bin/env python3
"""Throughput and latency of `millrace serve` in several arrangements of one machine, taken in turn.

Starts each arrangement, loads it with `millrace bench`, and goes round `--rounds` times, so that a noisy
machine disturbs all alike. Appends one JSON object per figure (median, spread) to --output.
"""

import argparse
import datetime
import json
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
ARRANGEMENTS = {
    "embedded-1x1": ["--embedded"],
    "mpi-1x1": [],
    "mpi-1x2": ["--lanes", "2"],
    "mpi-2x1": ["--stages", "2"],
    "mpi-2x2": ["--stages", "2", "--lanes", "2"],
}
# metric -> where the report has it, unit
METRICS = {
    "output_tokens_per_s": (lambda r: r["output_throughput"], "tokens/s"),
    "total_tokens_per_s": (lambda r: r["total_token_throughput"], "tokens/s"),
    "ttft_median": (lambda r: r["ttft_ms"]["median"], "ms"),
    "itl_median": (lambda r: r["itl_ms"]["median"], "ms"),
}


def cpu_name() -> str:
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return "unknown"


def once(binary: str, model: str, extra: list[str], load: list[str]) -> dict:
    serve = subprocess.Popen([binary, "serve", "--model", model, "--port", "0", "--set",
                              "gateway.cell_port=0", *extra], stdout=subprocess.PIPE,
                             stderr=subprocess.DEVNULL, text=True)
    try:
        for line in serve.stdout:
            found = re.search(r"serves \S+ at (http://\S+)", line)
            if found:
                break
        else:
            raise SystemExit("serve ended before it was ready")
        with tempfile.NamedTemporaryFile(suffix=".json") as report:
            subprocess.run([binary, "bench", "--url", found.group(1), *load, "--output", report.name],
                           check=True, stdout=subprocess.DEVNULL)
            return json.load(open(report.name, encoding="utf-8"))
    finally:
        serve.terminate()
        serve.wait(60)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--binary", default=str(ROOT / "build/cpu/bin/millrace"))
    parser.add_argument("--model", default=str(ROOT / "models/sample"))
    parser.add_argument("--case", default="sample")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--input-len", type=int, default=128)
    parser.add_argument("--output-len", type=int, default=64)
    parser.add_argument("--num-prompts", type=int, default=64)
    parser.add_argument("--output", default=str(ROOT / "tests/bench/results/serve.jsonl"))
    args = parser.parse_args()
    load = ["--concurrency", str(args.concurrency), "--input-len", str(args.input_len), "--output-len",
            str(args.output_len), "--num-prompts", str(args.num_prompts), "--token-range", "100", "4000"]
    values: dict[tuple[str, str], list[float]] = {}
    for _ in range(args.rounds):
        for name, extra in ARRANGEMENTS.items():
            report = once(args.binary, args.model, extra, load)
            for metric, (read, _) in METRICS.items():
                values.setdefault((name, metric), []).append(float(read(report)))
            time.sleep(0.2)
    commit = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], capture_output=True,
                            text=True, check=True).stdout.strip()
    with open(args.output, "a", encoding="utf-8") as out:
        for (name, metric), series in values.items():
            record = {"bench": "serve", "case": f"{args.case}-{name}-c{args.concurrency}", "metric": metric,
                      "value": round(statistics.median(series), 3), "unit": METRICS[metric][1],
                      "spread": [round(min(series), 3), round(max(series), 3)], "device": cpu_name(),
                      "date": datetime.date.today().isoformat(), "commit": commit,
                      "command": f"python3 tests/bench/serve_bench.py --case {args.case} --rounds "
                                 f"{args.rounds} --concurrency {args.concurrency} --input-len "
                                 f"{args.input_len} --output-len {args.output_len} --num-prompts "
                                 f"{args.num_prompts}"}
            out.write(json.dumps(record) + "\n")
            print(f"{record['case']:32} {metric:20} {record['value']:10.2f} {record['unit']:9} {record['spread']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
