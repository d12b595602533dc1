"""A stand-in for the gateway's page, data and chat, for what a real one does not do on demand: large clusters in
trouble, slow and broken answers, hostile text, silence. It serves the files of net/status_page themselves."""

import http.server
import json
import math
import pathlib
import re
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
PAGE = ROOT / "net" / "status_page"
TYPES = {".html": "text/html; charset=utf-8", ".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8",
         ".svg": "image/svg+xml"}
# The very policy that the gateway sends.
POLICY = "".join(re.findall(r'"(.*)"', re.search(r"kPolicy =(.*?);\n", (ROOT / "net/api_status.cc").read_text(),
                                                 re.DOTALL).group(1)))


def worker(stage: int, lane: int, first: int, layers: int, tilt: float) -> dict:
    ratios = [round(1 + tilt * math.sin(1.7 * layer + 2.1 * lane), 3) for layer in range(layers)]
    return {"stage": stage, "lane": lane, "busy_ratio": 0.9 - 0.07 * stage, "exchange_ratio": 0.12 + 0.03 * lane,
            "pipeline_wait_ratio": 0.05 * stage, "expert_rows_per_s": 5120.0, "expert_load_ratio": round(sum(ratios) / layers, 3),
            "first_moe_layer": first, "layer_load_ratio": ratios}


def cell(name: str, state: str = "healthy", stages: int = 2, lanes: int = 4, reason: str = "", tilt: float = 0.3,
         layers: int = 19, **more) -> dict:
    workers = [worker(p, e, 2 + p * layers, layers, tilt) for p in range(stages) for e in range(lanes)]
    quiet = state in ("gone", "joining")
    return {"id": name, "state": state, "reason": reason, "epoch": 7, "restarts": 1, "losses": 1, "heartbeat_age_s": 0.412,
            "progress_age_s": 0.0, "stages": stages, "lanes": lanes, "running": 0 if quiet else 212, "waiting": 3,
            "max_sequences": 256, "kv_tokens_used": 0 if quiet else 812_000, "kv_tokens_cached": 96_000, "kv_tokens": 1_200_000, "kv_dtype": "bfloat16",
            "backend": "cuda", "transport": "nccl 2.28.9",
            "steps": 123_456, "preemptions": 2, "start_s": 8.4, "steps_per_s": None if quiet else 61.2,
            "generated_tokens_per_s": None if quiet else 12_842.0, "prompt_tokens_per_s": None if quiet else 26_011.0,
            "busy_ratio": None if quiet else 0.97, "pipeline_bubble_ratio": None if quiet else 0.08,
            "workers": [] if quiet else workers, "imbalance": [], **more}


def status(cells: list[dict], **service) -> dict:
    def part(p50):
        return {"count": 4123, "p50_ms": p50, "p90_ms": p50 * 1.9, "p99_ms": p50 * 4.2}

    history = [round(24_000 + 2500 * math.sin(i / 5) + 400 * (i % 3)) for i in range(60)]
    return {
        "format": "millrace-status/1", "time_unix_s": time.time(),
        "service": {"model": "lfm2-24b-a2b", "version": "0.1.0", "uptime_s": 86_500, "ready": True, "reason": "",
                    "draining": False, "max_context_tokens": 32_768, **service},
        "queue": {"waiting": 187, "waiting_limit": 256, "prompt_tokens": 190_000, "prompt_tokens_limit": 1_000_000,
                  "timeout_s": 60, "retry_after_s": 4},
        "load": {"running": 424, "waiting_in_cells": 6, "kv_tokens_used": 1_624_000, "kv_tokens": 2_400_000},
        "rates": {"window_s": 5.0, "generated_tokens_per_s": history[-1], "prompt_tokens_per_s": 52_022, "finished_per_s": 50.4},
        "latency": {"window_s": 60, "ttft": part(184.0), "itl": part(14.2), "e2e": part(7400.0), "queue": part(90.0)},
        "errors": {"window_s": 60, "failed": 0, "rejected": 12, "failed_total": {"cell_lost": 3, "cell_error": 0},
                   "rejected_total": {"queue_full": 12}},
        "totals": {}, "history": {"step_s": 1, "generated_tokens_per_s": history, "running": [424] * 60,
                                  "waiting": [i for i in range(60)]},
        "cells": cells}


class FakeGateway:
    """`status` is what /status.json says. `chat` is what the next answer streams: strings are text, dictionaries whole
    events; a number waits that long; False breaks off; a (status, message) pair refuses instead."""

    def __init__(self, first_status: dict):
        self.status = first_status
        self.chat: list | tuple = ["Hello."]
        self.frozen: float | None = None  # the time that the status tells, when it stands still
        self.asked: list[dict] = []  # bodies of chat requests
        self.gone = threading.Event()  # a client left in the middle of an answer
        fake = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def answer(self, code: int, kind: str, body: bytes):
                self.send_response(code)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Security-Policy", POLICY)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_GET(self):
                name = "index.html" if self.path == "/status" else self.path.removeprefix("/status/")
                if self.path == "/status.json":
                    now = fake.frozen or time.time()
                    self.answer(200, "application/json", json.dumps({**fake.status, "time_unix_s": now}).encode())
                elif (PAGE / name).is_file():
                    self.answer(200, TYPES[pathlib.Path(name).suffix], (PAGE / name).read_bytes())
                else:
                    self.answer(404, "application/json", b"{}")

            def do_POST(self):
                fake.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                if isinstance(fake.chat, tuple):
                    code, message = fake.chat
                    self.answer(code, "application/json", json.dumps({"error": {"message": message}}).encode())
                    return
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.send_header("Connection", "close")
                self.end_headers()
                self.close_connection = True
                try:
                    for piece in [*fake.chat, {"choices": [{"delta": {}, "finish_reason": "stop"}]}]:
                        if piece is False:
                            return
                        self.event(piece)
                    self.event({"choices": [], "usage": {"completion_tokens": len(fake.chat)}})
                    self.wfile.write(b"data: [DONE]\n\n")
                except OSError:
                    fake.gone.set()

            def event(self, piece):
                if isinstance(piece, float):
                    time.sleep(piece)
                    return
                if isinstance(piece, str):
                    piece = {"choices": [{"delta": {"content": piece}, "finish_reason": None}]}
                self.wfile.write(f"data: {json.dumps(piece)}\n\n".encode())
                self.wfile.flush()

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()
