#!/usr/bin/env python3
"""A real Prometheus scrapes a real cluster under load: what the binary exports is what the catalogue lists, and every panel, rule and
scaler query finds data. MILLRACE_BIN names the executable; the model is models/sample."""

import json
import math
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import support  # noqa: E402

support.need_prometheus()

import metrics  # noqa: E402
import rules  # noqa: E402
from service import BIN, Service, wait_for  # noqa: E402
from support import CHART, HELM, PROMTOOL, RULES, Load, Prometheus, chart_rules, helm_template, panel_expression  # noqa: E402

# Enough load for every figure: answers, a client that left, one that was wrong, and a closed window of the cells' ratios.
LOADED = ('increase(vllm:request_success_total{finished_reason="length"}[1m]) > 4', 'vllm:request_success_total{finished_reason="abort"} > 0',
          'millrace_http_requests_total{status="400"} > 0', "millrace_lane_imbalance_ratio",
          "min(increase(millrace_worker_step_seconds_total[1m])) > 0", "min(increase(millrace_expert_rows_total[1m])) > 0")
# Alerts whose condition looks for what must not be; it is asked for a time when it was so.
BEFORE = {"MillraceNotScraped"}
# One that needs devices: here only its series is looked for.
SERIES = {"MillraceExchangeStaged": "millrace_cell_info"}


def boards():
    for path in sorted((CHART / "dashboards").glob("*.json")):
        yield path.stem, json.loads(path.read_text())


def samples(text: str):
    """(name, labels) of an exposition."""
    for name, labels in re.findall(r"^([a-z][\w:]*)(?:\{(.*)\})? \S+$", text, re.M):
        yield name, dict(re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', labels))


class Live(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        folder = pathlib.Path(cls.enterClassContext(tempfile.TemporaryDirectory()))
        cls.service = Service("--stages", "2", "--lanes", "2", "--set", "cell.id=a")
        cls.addClassCleanup(cls.service.stop)
        cls.prometheus = Prometheus(folder, cls.service.port, chart_rules(folder) or RULES)
        cls.addClassCleanup(cls.prometheus.stop)
        cls.began = time.time()
        cls.load = Load(BIN, f"http://127.0.0.1:{cls.service.port}")
        cls.load.start()
        cls.addClassCleanup(cls.load.stop)
        wait_for("a first scrape", cls.prometheus.ready)
        for condition in LOADED:
            wait_for(condition, lambda: cls.prometheus.query(condition), 120)

    def assertData(self, expr: str, where: str, **parameters):
        # Rules need two scrapes and an evaluation.
        found = wait_for(f"{where}: data for {expr}", lambda: self.prometheus.query(expr, **parameters), 30)
        for series in found:
            self.assertTrue(math.isfinite(float(series["value"][1])), f"{where}: {series} for {expr}")
        return found

    def test_1_the_binary_exports_what_the_catalogue_lists(self):
        text = self.service.get("/metrics")[1]
        types = dict(re.findall(r"^# TYPE (\S+) (\w+)$", text, re.M))
        listed = metrics.catalogue()
        self.assertEqual(types, {m.name: m.type for m in listed.values()})
        by_series, seen, edges = metrics.by_series(listed), set(), {}
        for name, labels in samples(text):
            metric = by_series[name]
            seen.add(metric.name)
            own = set(metric.labels) | (metrics.VLLM_LABELS if name.startswith("vllm:") else set())
            self.assertEqual(set(labels), own | ({"le"} if name.endswith("_bucket") else set()), name)
            for label, values in metric.labels.items():
                self.assertTrue(not values or labels[label] in values, f"{name}: {labels}")
            if "le" in labels:
                edges.setdefault(metric.name, set()).add(labels["le"])
        self.assertEqual(seen, set(listed))
        self.assertEqual(edges, {m.name: {*m.buckets, "+Inf"} for m in listed.values() if m.buckets})

    def test_2_promtool_finds_no_fault_in_the_exposition(self):
        text = self.service.get("/metrics")[1]
        result = subprocess.run([PROMTOOL, "check", "metrics"], input=text, capture_output=True, text=True)
        # vLLM's names are not ours to choose.
        found = [line for line in (result.stdout + result.stderr).splitlines() if line and not line.startswith("vllm:")]
        self.assertEqual(found, [])

    def test_3_every_panel_has_data(self):
        count = 0
        for name, board in boards():
            for panel in board["panels"]:
                for target in panel.get("targets", []):
                    with self.subTest(board=name, panel=panel["title"]):
                        count += 1
                        self.assertData(panel_expression(target["expr"]), panel["title"])
            for variable in board["templating"]["list"]:
                if variable["type"] == "query":
                    selector, label = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["definition"]).groups()
                    series = self.prometheus.ask("series", **{"match[]": panel_expression(selector)})
                    self.assertTrue([s for s in series if label in s], variable["name"])
        self.assertGreater(count, 80)

    def test_4_every_rule_has_data(self):
        for name in rules.recorded():
            with self.subTest(rule=name):
                self.assertData(name, name)
        for alert in rules.alerts():
            for value, _ in alert.conditions:
                with self.subTest(alert=alert.name):
                    self.assertData(SERIES.get(alert.name, value), alert.name, **({"time": self.began - 3600} if alert.name in BEFORE else {}))

    def test_5_the_scaler_finds_data(self):
        if not HELM.exists():
            self.skipTest("no Helm")
        for backend in ("statefulset", "lws"):
            text = helm_template("--set", "cells.autoscaling.enabled=true", "--set", f"cells.backend={backend}",
                                 "--show-only", "templates/scaling.yaml")
            self.assertEqual(len(self.assertData(re.search(r"query: '(.*)'", text).group(1), "scaler")), 1)

    def test_6_a_lost_cell_is_seen(self):
        """A worker is killed: the annotations mark it, the cell's room is gone until it is back, and what it ran has gone on."""
        under_way = self.load.ask({"max_tokens": 3000, "stream": True, "ignore_eos": True})
        self.addCleanup(under_way.close)
        under_way.readline()
        os.kill(next(p for p in self.service.ranks()), signal.SIGKILL)
        wait_for("the loss", lambda: self.prometheus.query("millrace_cell_losses_total > 0"), 30)
        wait_for("no ready cell", lambda: self.prometheus.query("min_over_time(millrace:cells_ready:max[20s]) == 0"), 30)
        self.assertData("min_over_time(millrace_cell_slots[20s]) == 0", "slots")
        wait_for("the restart", lambda: self.prometheus.query("millrace_cell_restarts_total > 0"), 60)
        wait_for("it is ready", lambda: self.prometheus.query("millrace_cells_ready > 0"), 60)
        time.sleep(2)
        marks = {a["expr"] for _, board in boards() for a in board["annotations"]["list"]}
        self.assertEqual(len(marks), 2)
        for expr in marks:
            self.assertData(panel_expression(expr), "annotation")
        self.assertTrue(under_way.read().endswith(b"data: [DONE]\n\n"))
        wait_for("the replay", lambda: self.prometheus.query("millrace_sequences_replayed_total > 0"), 30)
        self.assertFalse(self.prometheus.query('millrace_sequences_failed_total{reason="cell_lost"} > 0'))


if __name__ == "__main__":
    unittest.main(verbosity=2)
