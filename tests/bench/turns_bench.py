#!/usr/bin/env python3
"""The time to the first token of each turn of a conversation, beside llama-server on the same file.

A turn's prompt is the one before, its answer and some new tokens, as ids, so that no tokenizer decides what is known
already. Several conversations take turns, one request at a time. Each round starts both servers once, in changing
order, and Millrace once more without its prefix cache. Appends one JSON object per figure (median over conversations,
later turns and rounds, spread) to --output.

  tests/bench/turns_bench.py --llama-cpp BUILD/bin --model MODEL.gguf --label 8b-q4
"""

import argparse
import contextlib
import datetime
import http.client
import json
import os
import pathlib
import random
import socket
import statistics
import subprocess
import sys
import time
import urllib.parse

from serve_bench import ROOT, cpu_name, ready_url


@contextlib.contextmanager
def millrace(args, *extra: str):
    context = args.first + args.turns * (args.next + args.answer)
    process = subprocess.Popen([args.millrace, "serve", "--embedded", "--model", args.model, "--port", "0", "--set", "model.served_name=bench",
                                "--set", "gateway.cell_port=0", "--set", "device.backend=cpu",
                                "--set", f"grid.threads_per_rank={args.threads}", "--set", f"cache.max_context_tokens={context}",
                                "--set", "cache.max_sequences=8", "--set", f"cache.kv_tokens={8 * context}",
                                "--set", "scheduler.prefill_chunk_tokens=512", *extra],
                               stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        yield ready_url(process)
    finally:
        process.terminate()
        process.wait(60)


@contextlib.contextmanager
def llama_server(args):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = args.first + args.turns * (args.next + args.answer)
    process = subprocess.Popen([str(pathlib.Path(args.llama_cpp) / "llama-server"), "-m", args.model, "-t", str(args.threads),
                                "-c", str(8 * context), "-np", "8", "--host", "127.0.0.1", "--port", str(port)],
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(3000):
            with contextlib.suppress(OSError):
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
                connection.request("GET", "/health")
                if connection.getresponse().status == 200:
                    break
            if process.poll() is not None:
                sys.exit(f"llama-server ended with {process.returncode}")
            time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait(60)


def ask(url: str, prompt: list[int], tokens: int, llama: bool) -> tuple[float, list[int]]:
    """Seconds to the first event of the answer, and the answer."""
    address = urllib.parse.urlparse(url)
    body = {"prompt": prompt, "stream": True, "temperature": 0, "ignore_eos": True}
    if llama:
        body |= {"n_predict": tokens, "return_tokens": True, "cache_prompt": True}
    else:
        body |= {"model": "bench", "max_tokens": tokens, "return_token_ids": True}
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=600)
    begin = time.monotonic()
    connection.request("POST", "/completion" if llama else "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    if response.status != 200:
        sys.exit(f"{url}: {response.status} {response.read(500)}")
    first, answer = None, []
    for line in response:
        if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
            continue
        event = json.loads(line[6:])
        ids = event.get("tokens") if llama else next((c.get("token_ids") for c in event.get("choices", [])), None)
        if ids:
            first = first or time.monotonic() - begin
            answer += ids
    connection.close()
    if len(answer) != tokens:
        sys.exit(f"{url}: {len(answer)} tokens instead of {tokens}")
    return first, answer


def talk(url: str, args, conversations: int, llama: bool, seed: int) -> list[list[float]]:
    """By turn, the times to the first token of all conversations."""
    source = random.Random(seed)
    talks = [[] for _ in range(conversations)]
    times = []
    for turn in range(args.turns):
        times.append([])
        for i in range(conversations):
            talks[i] += [source.randrange(1000, 30000) for _ in range(args.next if turn else args.first)]
            seconds, answer = ask(url, talks[i], args.answer, llama)
            talks[i] += answer
            times[-1].append(seconds)
    return times


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama-cpp", default="", help="folder with llama-server; without it Millrace runs alone")
    parser.add_argument("--millrace", default=str(ROOT / "build/cpu/bin/millrace"))
    parser.add_argument("--model", required=True, help="the GGUF file for both")
    parser.add_argument("--label", required=True, help="of the model in the records")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--first", type=int, default=512, help="tokens of the first prompt")
    parser.add_argument("--next", type=int, default=32, help="new tokens of each later one")
    parser.add_argument("--answer", type=int, default=48)
    parser.add_argument("--conversations", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", default="", help="file to append to (default: none)")
    args = parser.parse_args()
    servers = {"millrace": lambda: millrace(args),
               "millrace-no-cache": lambda: millrace(args, "--set", "cache.prefix=false")}
    if args.llama_cpp:
        servers["llama-server"] = lambda: llama_server(args)
    first, later = {}, {}
    for i in range(args.rounds):
        for name in list(servers)[::1 if i % 2 == 0 else -1]:
            with servers[name]() as url:
                ask(url, list(range(2000, 2064)), 4, name == "llama-server")  # touches the weights
                for conversations in args.conversations:
                    times = talk(url, args, conversations, name == "llama-server", 100 * i + conversations)
                    key = f"turns-of-{conversations}", name
                    first.setdefault(key, []).extend(times[0])
                    later.setdefault(key, []).extend(t for turn in times[1:] for t in turn)
                    print(f"round {i + 1} of {args.rounds}: {key}: {[[round(t, 3) for t in turn] for turn in times]}",
                          file=sys.stderr, flush=True)
    commit = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], capture_output=True, text=True,
                            check=True).stdout.strip()
    command = "python3 tests/bench/turns_bench.py " + " ".join(a.rstrip("/").rsplit("/", 1)[-1] for a in sys.argv[1:])
    lines = []
    for metric, series in (("ttft_first_turn", first), ("ttft_later_turns", later)):
        for (case, name), values in series.items():
            line = {"bench": "turns", "case": f"{args.label}-{case}-{name}", "metric": metric,
                    "value": round(statistics.median(values), 3), "unit": "s",
                    "spread": [round(min(values), 3), round(max(values), 3)], "samples": len(values)}
            if name != "llama-server" and (peer := series.get((case, "llama-server"))):
                line["ratio_vs_llama_cpp"] = round(statistics.median(values) / statistics.median(peer), 3)
            lines.append({**line, "device": f"{cpu_name()}, {args.threads} threads", "date": datetime.date.today().isoformat(),
                          "commit": commit, "command": command})
            print(f"{lines[-1]['case']:44} {metric:18} {line['value']:8.3f} s {line['spread']} {line.get('ratio_vs_llama_cpp', '')}")
    if args.output:
        with pathlib.Path(args.output).open("a", encoding="utf-8") as out:
            out.writelines(json.dumps(line) + "\n" for line in lines)


if __name__ == "__main__":
    main()
