#!/usr/bin/env python3
"""Runs kernels_bench several times and appends median and spread of each line to a result file."""

import argparse
import datetime
import json
import pathlib
import re
import statistics
import subprocess

from serve_bench import ROOT, cpu_name

RATE = re.compile(r"\s+(?P<value>[\d.]+) (?P<unit>GB/s|GFLOP/s|Gop/s|Gvalues/s)")


def figures(text: str) -> dict[tuple[str, str], float]:
    found = {}
    for line in text.splitlines():
        rates = list(RATE.finditer(line))
        if rates:
            name = re.sub(r"\s+[\d.]+ ms.*", "", line[: rates[0].start()].strip())
            words = "-".join(re.findall(r"[\w.]+", name.split(": ")[-1]))
            found.update({(words, rate["unit"]): float(rate["value"]) for rate in rates})
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--binary", default=str(ROOT / "build/cpu/tests/kernels/kernels_bench"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--isa", default="avx512")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--output", default=str(ROOT / "tests/bench/results/kernels.jsonl"))
    args = parser.parse_args()
    series: dict[tuple[str, str], list[float]] = {}
    for _ in range(args.runs):
        text = subprocess.run([args.binary, str(args.threads), args.isa], capture_output=True, text=True,
                              check=True).stdout
        for key, value in figures(text).items():
            series.setdefault(key, []).append(value)
    commit = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], capture_output=True,
                            text=True, check=True).stdout.strip()
    command = f"python3 tests/bench/kernels_record.py --threads {args.threads} --isa {args.isa} --runs {args.runs}"
    with pathlib.Path(args.output).open("a", encoding="utf-8") as out:
        for (name, unit), values in series.items():
            out.write(json.dumps({
                "bench": "kernels", "case": f"{args.isa}-t{args.threads}-{name}", "metric": "rate",
                "value": round(statistics.median(values), 2), "unit": unit,
                "spread": [min(values), max(values)], "device": cpu_name(),
                "date": datetime.date.today().isoformat(), "commit": commit, "command": command}) + "\n")


if __name__ == "__main__":
    main()
