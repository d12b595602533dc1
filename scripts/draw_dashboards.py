#!/usr/bin/env python3
"""Draws the dashboards as they look over a real run: `draw_dashboards.py OUT_FOLDER`, with matplotlib (docs/dashboards.md says how).

Starts two cells of 2 stages x 2 lanes of the sample model and Debian's Prometheus, asks more and more of them for some minutes, kills a
worker on the way, and puts every panel's query to Prometheus, as Grafana would. The look is ours: Grafana's layout and units, not its code.
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
from cluster_test import BIN, Service, wait_for  # noqa: E402
from dashboards import DASHBOARDS  # noqa: E402
from support import RULES, Load, Prometheus, panel_expression  # noqa: E402

WINDOW = "15s"


class Answers:
    """Prometheus's answers for panels, over the run or at its end."""

    def __init__(self, prometheus: Prometheus, start: float, end: float):
        self.prometheus, self.start, self.end = prometheus, start, end
        self.step = max(1.0, (end - start) / 300)

    def over_time(self, expr: str) -> list[dict]:
        return self.prometheus.range(panel_expression(expr, WINDOW), self.start, self.end, self.step)

    def now(self, expr: str) -> list[dict]:
        return self.prometheus.query(panel_expression(expr, WINDOW), time=self.end)


def run(folder: pathlib.Path, seconds: float, out: pathlib.Path):
    service = Service("--cells", "2", "--stages", "2", "--lanes", "2", "--set", "cache.kv_tokens=3072", "--set", "gateway.max_queued_requests=24")
    prometheus = Prometheus(folder, service.port, RULES)
    try:
        wait_for("a first scrape", prometheus.ready)
        wait_for("both cells", lambda: prometheus.query("millrace_cells_ready == 2"), 120)
        start = time.time() + 5
        for phase, concurrency in enumerate((2, 8, 20, 44, 12)):
            load = Load(BIN, f"http://127.0.0.1:{service.port}", concurrency)
            load.start()
            time.sleep(seconds / 5)
            load.stop()
            if phase == 1:
                os.kill(service.ranks()[0], signal.SIGKILL)
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
    parser.add_argument("--seconds", type=float, default=300, help="length of the run")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        run(pathlib.Path(folder), arguments.seconds, arguments.out)


if __name__ == "__main__":
    main()
