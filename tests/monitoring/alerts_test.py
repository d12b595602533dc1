#!/usr/bin/env python3
"""The rules under Debian's promtool: their syntax, and that each alert fires, with its words, and does not. Every panel's expression
is parsed by it as well."""

import concurrent.futures
import dataclasses
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

import metrics  # noqa: E402
import rules  # noqa: E402
from alert_cases import POD, Case, Objectives, cases  # noqa: E402
from support import PROMTOOL, ROOT, RULES, chart_rules  # noqa: E402

TARGET = {"job": "millrace", "namespace": "serving"}
# As far from the defaults as they go with alerts that can fire; and one of them is another's default.
OTHER = Objectives(availability=0.99, firstToken=0.95, firstTokenSeconds=0.25, interToken=0.999, interTokenSeconds=1)
ALIKE = Objectives(availability=0.97, firstToken=0.97, firstTokenSeconds=0.5, interToken=0.97, interTokenSeconds=0.5)


def promtool(*arguments) -> subprocess.CompletedProcess:
    return subprocess.run([PROMTOOL, *map(str, arguments)], capture_output=True, text=True)


def labelled(name: str, job: str = TARGET["job"]) -> str:
    own = ", ".join(f'{k}="{v}"' for k, v in (TARGET | {"job": job, "pod": POD}).items())
    return name.replace("{", f"{{{own}, ") if "{" in name else f"{name}{{{own}}}"


def unit_tests(alert: rules.Alert, case: Case, absent: dict[str, str], fires: bool = True) -> list[dict]:
    """All at once, each as a job of its own, of which only the first may fire; one by one where the alert is on jobs that are not there.
    `absent`: labels that it then has, which are those that a selector gives."""
    def of(jobs: dict[str, dict[str, str]], target: dict[str, str]) -> dict:
        words = {"summary": alert.summary, "description": case.description, "runbook_url": alert.anchor()}
        expected = [{"exp_labels": {"severity": alert.severity, **target, **case.labels}, "exp_annotations": words}]
        return {"name": f"{alert.name}: {', '.join(jobs)}", "interval": case.every,
                "input_series": [{"series": labelled(name, job), "values": values} for job, series in jobs.items() for name, values in series.items()],
                "alert_rule_test": [{"eval_time": case.at, "alertname": alert.name, "exp_alerts": expected if TARGET["job"] in jobs else []}]}

    quiet = {f"quiet-millrace-{i}": series for i, series in enumerate(case.quiet)}
    if alert.name != "MillraceNotScraped":
        return [of(({TARGET["job"]: case.fires} if fires else {}) | quiet, TARGET)]
    return [of({TARGET["job"]: case.fires}, absent)] * fires + [of({job: series}, absent) for job, series in quiet.items()]


def failure(file: pathlib.Path, every: str, tests: list[dict]) -> str:
    """What promtool says to the tests; empty when they pass."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as f:
        json.dump({"rule_files": [str(file)], "evaluation_interval": every, "tests": tests}, f)
        f.flush()
        result = promtool("test", "rules", f.name)
    return "" if result.returncode == 0 else result.stdout + result.stderr


def parallel(function, items) -> list:
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(function, items))


def without_a_condition(alert: rules.Alert):
    """(what is missing, the alert) for each of its conditions and bounds, when there are several."""
    if alert.extra:
        yield alert.extra, dataclasses.replace(alert, extra="")
    for condition in alert.conditions if len(alert.conditions) > 1 else ():
        yield " ".join(condition), dataclasses.replace(alert, conditions=[c for c in alert.conditions if c is not condition])


def recordings_for(alert: rules.Alert) -> list[rules.Recording]:
    """Those that it asks, and those that these ask, in their order; each more would only take time."""
    every = [r for group in rules.GROUPS for r in group.recordings]
    wanted, ask = set(), [alert.expr()]
    while ask:
        named = {s.metric for s in metrics.selectors(ask.pop())} - wanted
        wanted |= named
        ask += [r.expr for r in every if r.name in named]
    return [r for r in every if r.name in wanted]


class Alerts(unittest.TestCase):
    def check(self, file: pathlib.Path, objectives: Objectives, absent: dict[str, str], alerts: list[rules.Alert]):
        every = cases(objectives)
        self.assertEqual(set(every), {a.name for a in rules.alerts()})

        def one(alert: rules.Alert) -> str:
            case = every[alert.name]
            return failure(file, case.every, unit_tests(alert, case, absent))

        for alert, problem in zip(alerts, parallel(one, alerts)):
            with self.subTest(alert=alert.name):
                self.assertEqual(problem, "")

    def test_every_alert_fires_and_is_quiet(self):
        self.check(RULES, Objectives(), {}, rules.alerts())

    def test_so_do_they_as_the_chart_renders_them(self):
        for objectives in (None, OTHER, ALIKE):
            with self.subTest(objectives=objectives), tempfile.TemporaryDirectory() as folder:
                values = {"slo": dataclasses.asdict(objectives)} if objectives else {}
                file = chart_rules(pathlib.Path(folder), **values)
                if file is None:
                    self.skipTest("no Helm")
                self.check(file, objectives or Objectives(), {"namespace": "serving"}, rules.OBJECTIVES.alerts if objectives else rules.alerts())

    def test_cases_notice_a_missing_condition(self):
        """The cases themselves: with one condition taken out, an alert fires where it should not."""
        def one(job) -> str:
            alert, left = job
            case = cases(Objectives())[alert.name]
            with tempfile.NamedTemporaryFile("w", suffix=".yaml") as f:
                f.write(rules.rules_yaml([rules.Group("one", recordings_for(alert), [left])]))
                f.flush()
                return failure(pathlib.Path(f.name), case.every, unit_tests(alert, case, {}, fires=False))

        jobs = [(alert, left, what) for alert in rules.alerts() for what, left in without_a_condition(alert)]
        self.assertGreater(len(jobs), 30)
        for (alert, _, what), problem in zip(jobs, parallel(one, [job[:2] for job in jobs])):
            with self.subTest(alert=alert.name, without=what):
                self.assertIn("FAILED", problem)
                self.assertIn("got:", problem)

    def test_recordings_join_gateways(self):
        """Two gateways that export the same cell give its figures once, and their own requests are added up."""
        series = {'millrace_cell_kv_tokens{instance="%s", cell="a"}': "200x20", 'millrace_cell_kv_tokens_used{instance="%s", cell="a"}': "50x20",
                  'millrace_cell_busy_seconds_total{instance="%s", cell="a"}': "0+30x20",
                  'vllm:request_success_total{instance="%s", finished_reason="stop"}': "0+60x20",
                  'millrace_admission_rejections_total{instance="%s", reason="no_cell"}': "0+20x20",
                  'millrace_sequences_failed_total{instance="%s", reason="cell_lost"}': "0x20",
                  'vllm:inter_token_latency_seconds_count{instance="%s"}': "0+300x20",
                  'vllm:inter_token_latency_seconds_bucket{instance="%s", le="0.2"}': "0+270x20",
                  'millrace_build_info{instance="%s"}': "1x20"}
        wanted = {"millrace:cell_kv_use:ratio": ({"cell": "a"}, 0.25), "millrace:cell_busy:ratio_rate5m": ({"cell": "a"}, 0.5),
                  "millrace:requests:all_rate5m": ({}, 2 * 80 / 60), "millrace:requests:bad_ratio_rate5m": ({}, 0.25),
                  "millrace:requests:budget_left_30d": ({}, 1 - 0.25 / 0.001),
                  "millrace:inter_token:bad_rate5m": ({}, 2 * 30 / 60), "millrace:inter_token:bound_seconds": ({}, 0.2),
                  "millrace:inter_token:budget_left_30d": ({}, 1 - 0.1 / 0.01)}
        test = {"interval": "1m",
                "input_series": [{"series": labelled(name % gateway), "values": v} for name, v in series.items() for gateway in ("x", "y")],
                "promql_expr_test": [{"expr": f"round({name}, 1e-6)", "eval_time": "15m", "exp_samples": [
                    {"labels": "{" + ", ".join(f'{k}="{v}"' for k, v in (TARGET | labels).items()) + "}", "value": round(value, 6)}]}
                    for name, (labels, value) in wanted.items()]}
        self.assertEqual(failure(RULES, "1m", [test]), "")

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
