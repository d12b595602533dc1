#!/usr/bin/env python3
"""Draws the dashboards as they look over a real run: `draw_dashboards.py OUT_FOLDER`, with matplotlib (docs/dashboards.md says how).

Starts two cells of 2 stages x 2 lanes of the sample model and Debian's Prometheus, asks more and more of them for some minutes, kills a
worker while it answers, and puts every panel's query to Prometheus, as Grafana would. The look is ours: Grafana's layout and units, not its code.
"""

import argparse
import os
import pathlib
import signal
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "monitoring"), str(ROOT / "tests" / "monitoring")]
import support  # noqa: E402

support.need_prometheus()

import board_image  # noqa: E402
from service import BIN, Service, wait_for  # noqa: E402
from dashboards import DASHBOARDS  # noqa: E402
from support import Load, Prometheus, chart_rules, panel_expression  # noqa: E402

WINDOW = "15s"
# Two cells with slots for 32 sequences. At most clients there is a queue, with a few more for a moment it is full; the kill falls into
# a phase that one cell can carry.
SETTINGS = ("--set", "cache.max_sequences=8", "--set", "cache.kv_tokens=3072", "--set", "gateway.max_queued_requests=24")
CLIENTS = (3, 8, 15, 50, 10, 4)
KILL_AT = 15
# A month's budget has only these minutes to stand for, on two cores for ten ranks: wide enough that they do not spend it many times over.
OBJECTIVES = {"availability": 0.9, "firstToken": 0.9, "firstTokenSeconds": 5, "interToken": 0.95, "interTokenSeconds": 0.5}


class Answers:
    """Prometheus's answers for panels, over the run or at its end."""

    def __init__(self, prometheus: Prometheus, start: float, end: float):
        self.prometheus, self.start, self.end = prometheus, start, end
        self.step = max(1.0, (end - start) / 300)

    def over_time(self, expr: str) -> list[dict]:
        return self.prometheus.range(panel_expression(expr, WINDOW), self.start, self.end, self.step)

    def now(self, expr: str) -> list[dict]:
        return self.prometheus.query(panel_expression(expr, WINDOW), time=self.end)


class Clients:
    """Most with short prompts and answers, one in five with longer ones."""

    def __init__(self, url: str, number: int):
        long = max(1, number // 5)
        self.loads = [Load(BIN, url, number - long), Load(BIN, url, long, prompt_tokens=320, answer_tokens=96)]
        for load in self.loads:
            load.start()

    def stop(self):
        for load in self.loads:
            load.over.set()
        for load in self.loads:
            load.join()


def kill_a_worker(service: Service, load: Load):
    """With answers of both cells under way, beside those of the load: some of them are cut off."""
    streams = [load.ask({"max_tokens": 1000, "stream": True, "ignore_eos": True}) for _ in range(4)]
    for stream in streams:
        stream.readline()
    os.kill(service.ranks()[0], signal.SIGKILL)
    for stream in streams:
        stream.close()


def run(folder: pathlib.Path, seconds: float, out: pathlib.Path):
    rules = chart_rules(folder, slo=OBJECTIVES)
    if rules is None:
        sys.exit("draw_dashboards.py: the chart renders the rules; run scripts/test-helm-venv first")
    service = Service("--cells", "2", "--stages", "2", "--lanes", "2", *SETTINGS)
    prometheus = Prometheus(folder, service.port, rules)
    url = f"http://127.0.0.1:{service.port}"
    try:
        wait_for("a first scrape", prometheus.ready)
        wait_for("both cells", lambda: prometheus.query("millrace_cells_ready == 2"), 120)
        start = time.time() + 5
        for number in CLIENTS:
            clients = Clients(url, number)
            time.sleep(seconds / len(CLIENTS) / 2)
            if number == KILL_AT:
                kill_a_worker(service, clients.loads[0])
            if number == max(CLIENTS):
                burst = Clients(url, 16)
                time.sleep(3)
                burst.stop()
            time.sleep(seconds / len(CLIENTS) / 2)
            clients.stop()
        end = time.time() - 2
        time.sleep(3)
        answers = Answers(prometheus, start, end)
        for name, board in DASHBOARDS.items():
            path = out / f"dashboard-{name}.png"
            board_image.draw(board, answers, path)
            print(f"{path}: {path.stat().st_size // 1024} KiB")
    finally:
        prometheus.stop()
        service.stop()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--seconds", type=float, default=360, help="length of the run")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        run(pathlib.Path(folder), arguments.seconds, arguments.out)


if __name__ == "__main__":
    main()
