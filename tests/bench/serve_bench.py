#!/usr/bin/env python3
"""`millrace serve` in several arrangements of one machine: start, throughput, latency, memory.

Starts each arrangement, loads it with `millrace bench` at each concurrency, and goes round `--rounds` times, so that a
noisy machine disturbs all alike. Appends one JSON object per figure (median, spread) to --output.
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
    "embedded-1x1-prefix-cache": ["--embedded", "--set", "cache.prefix=true"],
    "embedded-1x1-async": ["--embedded", "--set", "scheduler.async=always"],
    "mpi-1x1-async": ["--set", "scheduler.async=always"],
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


def processes(root: int) -> list[int]:
    """The process and all below it."""
    found = [root]
    for pid in found:
        for children in pathlib.Path(f"/proc/{pid}/task").glob("*/children"):
            found += [int(child) for child in children.read_text().split()]
    return found


def role(pid: int) -> str:
    """What a process of the service is: gateway, mpirun, rank0 or worker."""
    environment = pathlib.Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    rank = [e.split(b"=")[1] for e in environment if e.startswith(b"OMPI_COMM_WORLD_RANK=")]
    if not rank:
        return pathlib.Path(f"/proc/{pid}/comm").read_text().strip().replace("millrace", "gateway")
    return "rank0" if rank == [b"0"] else "worker"


def peak_memory_mib(root: int) -> dict[str, float]:
    """The largest resident set that a process of each role has had."""
    peak: dict[str, float] = {}
    for pid in processes(root):
        status = pathlib.Path(f"/proc/{pid}/status").read_text()
        if found := re.search(r"VmHWM:\s+(\d+) kB", status):
            name = role(pid)
            peak[name] = max(peak.get(name, 0), int(found.group(1)) / 1024)
    return peak


def ready_url(serve: subprocess.Popen) -> str:
    """Where `millrace serve`, its standard output a text pipe, serves, once it does."""
    for line in serve.stdout:
        if found := re.search(r"serves \S+ at (http://\S+)", line):
            return found.group(1)
    raise SystemExit("serve ended before it was ready")


def once(binary: str, model: str, extra: list[str], load: list[str], concurrencies: list[int]) -> dict:
    """(case suffix, metric) -> (value, unit) of one start."""
    begin = time.monotonic()
    # The loads of one start have prompts in common.
    serve = subprocess.Popen([binary, "serve", "--model", model, "--port", "0", "--set", "gateway.cell_port=0",
                              *([] if "cache.prefix=true" in extra else ["--set", "cache.prefix=false"]), *extra], stdout=subprocess.PIPE,
                             stderr=subprocess.DEVNULL, text=True)
    figures = {}
    try:
        url = ready_url(serve)
        figures["", "start_to_ready"] = (time.monotonic() - begin, "s")
        for concurrency in concurrencies:
            with tempfile.NamedTemporaryFile(suffix=".json") as file:
                subprocess.run([binary, "bench", "--url", url, *load, "--concurrency", str(concurrency),
                                "--num-prompts", str(max(8, 4 * concurrency)), "--output", file.name],
                               check=True, stdout=subprocess.DEVNULL)
                report = json.load(open(file.name, encoding="utf-8"))
            for metric, (read, unit) in METRICS.items():
                figures[f"-c{concurrency}", metric] = (float(read(report)), unit)
        for name, mib in peak_memory_mib(serve.pid).items():
            figures["", f"peak_memory_{name}"] = (mib, "MiB")
        return figures
    finally:
        serve.terminate()
        serve.wait(60)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--binary", default=str(ROOT / "build/cpu/bin/millrace"))
    parser.add_argument("--model", default=str(ROOT / "models/sample"))
    parser.add_argument("--case", default="sample")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--arrangement", nargs="+", choices=ARRANGEMENTS, default=list(ARRANGEMENTS))
    parser.add_argument("--input-len", type=int, default=128)
    parser.add_argument("--output-len", type=int, default=64)
    parser.add_argument("--prefix-len", type=int, default=0, help="of input-len, tokens that all prompts begin with")
    parser.add_argument("--output", default=str(ROOT / "tests/bench/results/serve.jsonl"))
    args = parser.parse_args()
    load = ["--input-len", str(args.input_len), "--prefix-len", str(args.prefix_len), "--output-len", str(args.output_len),
            "--token-range", "100", "4000"]
    series: dict[tuple[str, str, str], list[float]] = {}
    for _ in range(args.rounds):
        for name in args.arrangement:
            figures = once(args.binary, args.model, ARRANGEMENTS[name], load, args.concurrency)
            for (suffix, metric), (value, unit) in figures.items():
                series.setdefault((name + suffix, metric, unit), []).append(value)
            time.sleep(0.2)
    commit = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], capture_output=True,
                            text=True, check=True).stdout.strip()
    words = [f"--case {args.case} --rounds {args.rounds} --concurrency", *map(str, args.concurrency),
             f"--input-len {args.input_len} --output-len {args.output_len} --arrangement", *args.arrangement]
    for option in ("binary", "model", "prefix_len"):
        if (value := getattr(args, option)) != parser.get_default(option):
            words.append(f"--{option.replace('_', '-')} {value}")
    with open(args.output, "a", encoding="utf-8") as out:
        for (name, metric, unit), values in series.items():
            record = {"bench": "serve", "case": f"{args.case}-{name}", "metric": metric,
                      "value": round(statistics.median(values), 3), "unit": unit,
                      "spread": [round(min(values), 3), round(max(values), 3)], "device": cpu_name(),
                      "date": datetime.date.today().isoformat(), "commit": commit,
                      "command": "python3 tests/bench/serve_bench.py " + " ".join(words)}
            out.write(json.dumps(record) + "\n")
            print(f"{record['case']:28} {metric:22} {record['value']:10.2f} {unit:9} {record['spread']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
