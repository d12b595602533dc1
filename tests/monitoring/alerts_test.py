#!/usr/bin/env python3
"""The rules under Debian's promtool: their syntax, and that each alert fires, with its words, and does not. Every panel's expression
is parsed by it as well."""

import concurrent.futures
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import support  # noqa: E402

support.need_prometheus()

import rules  # noqa: E402
from alert_cases import CASES, Case  # noqa: E402
from support import PROMTOOL, ROOT, RULES  # noqa: E402

TARGET = {"job": "millrace", "namespace": "serving"}


def promtool(*arguments) -> subprocess.CompletedProcess:
    return subprocess.run([PROMTOOL, *map(str, arguments)], capture_output=True, text=True)


def labelled(name: str) -> str:
    own = ", ".join(f'{k}="{v}"' for k, v in TARGET.items())
    return name.replace("{", f"{{{own}, ") if "{" in name else f"{name}{{{own}}}"


def unit_test(alert: rules.Alert, case: Case, series: dict[str, str], fires: bool) -> dict:
    words = {"summary": alert.summary, "description": case.description, "runbook_url": alert.anchor()}
    target = TARGET if alert.name != "MillraceNotScraped" else {}
    expected = [{"exp_labels": {"severity": alert.severity, **target, **case.labels}, "exp_annotations": words}] if fires else []
    return {"name": f"{alert.name} {'fires' if fires else 'is quiet'}", "interval": case.every,
            "input_series": [{"series": labelled(name), "values": values} for name, values in series.items()],
            "alert_rule_test": [{"eval_time": case.at, "alertname": alert.name, "exp_alerts": expected}]}


def run_case(alert: rules.Alert) -> tuple[str, str]:
    case = CASES[alert.name]
    file = {"rule_files": [str(RULES)], "evaluation_interval": case.every,
            "tests": [unit_test(alert, case, case.fires, True), unit_test(alert, case, case.quiet, False)]}
    with tempfile.NamedTemporaryFile("w", suffix=".json") as f:
        json.dump(file, f)
        f.flush()
        result = promtool("test", "rules", f.name)
    return alert.name, "" if result.returncode == 0 else result.stdout + result.stderr


class Alerts(unittest.TestCase):
    def test_every_alert_fires_and_is_quiet(self):
        self.assertEqual(set(CASES), {a.name for a in rules.alerts()})
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            for name, problem in pool.map(run_case, rules.alerts()):
                with self.subTest(alert=name):
                    self.assertEqual(problem, "")

    def test_recordings_join_gateways(self):
        """Two gateways that export the same cell give its figures once, and their own requests are added up."""
        series = {'millrace_cell_kv_tokens{instance="%s", cell="a"}': "200x20", 'millrace_cell_kv_tokens_used{instance="%s", cell="a"}': "50x20",
                  'millrace_cell_busy_seconds_total{instance="%s", cell="a"}': "0+30x20",
                  'vllm:request_success_total{instance="%s", finished_reason="stop"}': "0+60x20",
                  'millrace_admission_rejections_total{instance="%s", reason="no_cell"}': "0+20x20",
                  'millrace_sequences_failed_total{instance="%s", reason="cell_lost"}': "0x20",
                  'millrace_build_info{instance="%s"}': "1x20"}
        wanted = {"millrace:cell_kv_use:ratio": ({"cell": "a"}, 0.25), "millrace:cell_busy:ratio_rate5m": ({"cell": "a"}, 0.5),
                  "millrace:requests:all_rate5m": ({}, 2 * 80 / 60), "millrace:requests:bad_ratio_rate5m": ({}, 0.25),
                  "millrace:requests:budget_left_30d": ({}, 1 - 0.25 / 0.001)}
        test = {"interval": "1m",
                "input_series": [{"series": labelled(name % gateway), "values": v} for name, v in series.items() for gateway in ("x", "y")],
                "promql_expr_test": [{"expr": f"round({name}, 1e-6)", "eval_time": "15m", "exp_samples": [
                    {"labels": "{" + ", ".join(f'{k}="{v}"' for k, v in (TARGET | labels).items()) + "}", "value": round(value, 6)}]}
                    for name, (labels, value) in wanted.items()]}
        with tempfile.NamedTemporaryFile("w", suffix=".json") as f:
            json.dump({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": [test]}, f)
            f.flush()
            result = promtool("test", "rules", f.name)
        self.assertEqual(result.returncode, 0, result.stdout + result.stderr)

    def test_promtool_accepts_rules_and_panels(self):
        result = promtool("check", "rules", "--lint-fatal", RULES)
        self.assertEqual(result.returncode, 0, result.stdout + result.stderr)
        groups = []
        for path in sorted((ROOT / "helm" / "millrace" / "dashboards").glob("*.json")):
            expressions = [t["expr"] for p in json.loads(path.read_text())["panels"] for t in p.get("targets", [])]
            groups.append({"name": path.stem, "rules": [
                {"record": f"panel:{path.stem}:{i}", "expr": e.replace("$__rate_interval", "1m")} for i, e in enumerate(expressions)]})
        with tempfile.NamedTemporaryFile("w", suffix=".json") as f:
            json.dump({"groups": groups}, f)
            f.flush()
            result = promtool("check", "rules", "--lint-fatal", f.name)
        self.assertEqual(result.returncode, 0, result.stdout + result.stderr)


if __name__ == "__main__":
    unittest.main(verbosity=2)
