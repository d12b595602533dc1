#!/usr/bin/env python3
"""Dashboards, rules and the chart's queries against the metric catalogue, and their form. Needs neither Prometheus nor Helm."""

import json
import pathlib
import re
import sys
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT / "monitoring"), str(ROOT / "scripts")]

import metrics  # noqa: E402
import monitoring_files  # noqa: E402
import rules  # noqa: E402
from dashboards import DASHBOARDS  # noqa: E402

CATALOGUE = metrics.catalogue()
CHART = ROOT / "helm" / "millrace"
BOARDS = {path.stem: json.loads(path.read_text()) for path in sorted((CHART / "dashboards").glob("*.json"))}
SCALER_QUERY = re.compile(r'query: .*printf "([^\n]*?\))" \.Release')


def panels(board: dict) -> list[dict]:
    return [p for p in board["panels"] if p["type"] != "row"]


def expressions():
    """(where, expression) of everything that asks Prometheus."""
    for name, board in BOARDS.items():
        for p in panels(board):
            for target in p["targets"]:
                yield f"{name}: {p['title']}", target["expr"]
        for a in board["annotations"]["list"]:
            yield f"{name}: annotation {a['name']}", a["expr"]
        for v in board["templating"]["list"]:
            if v["type"] == "query":
                yield f"{name}: variable {v['name']}", re.fullmatch(r"label_values\((.*), \w+\)", v["definition"]).group(1)
    for group in rules.GROUPS:
        for rule in [*group.recordings, *group.alerts]:
            yield rule.name, rule.expr() if isinstance(rule, rules.Alert) else rule.expr
    found = SCALER_QUERY.findall((CHART / "templates" / "scaling.yaml").read_text())
    assert found, "the scaler's query is not where it was"
    for query in found:
        yield "scaler", query.replace("%q", '"x"')


class Files(unittest.TestCase):
    def test_generated_files_are_current(self):
        for path, text in monitoring_files.files().items():
            self.assertEqual(path.read_text(), text, f"{path.name}: run scripts/monitoring_files.py")
        self.assertEqual(set(BOARDS), set(DASHBOARDS))

    def test_everything_named_is_exported(self):
        count = 0
        for where, expr in expressions():
            count += 1
            self.assertEqual(metrics.problems(expr, CATALOGUE, rules.recorded()), [], where)
        self.assertGreater(count, 100)

    def test_what_is_not_exported_is_noticed(self):
        """The check itself: each of these is one mistake."""
        good = 'sum by (cell) (rate(millrace_step_seconds_bucket{cell="a", le="0.005"}[5m]))'
        self.assertEqual(metrics.problems(good, CATALOGUE, {}), [])
        for wrong in (good.replace("step_seconds", "steps_seconds"), good.replace("_bucket", ""), good.replace('le="0.005"', 'le="0.004"'),
                      good.replace('cell="a"', 'lane="0"'), good.replace("by (cell)", "by (stage)"),
                      'rate(millrace_sequences_failed_total{reason=~"cell_lost|sell_error"}[5m])',
                      'millrace_cells{state!="gone"}', "max(millrace:made_up) > 1", 'vllm:request_success_total{reason="stop"}'):
            self.assertNotEqual(metrics.problems(wrong, CATALOGUE, rules.recorded()), [], wrong)

    def test_the_catalogue_was_read_whole(self):
        header = (ROOT / "monitoring" / "catalogue.h").read_text()
        self.assertEqual(set(CATALOGUE), set(re.findall(r'"((?:vllm:|millrace_)\w+)"', header)))
        for metric in CATALOGUE.values():
            self.assertEqual(bool(metric.buckets), metric.type == "histogram", metric.name)

    def test_every_metric_of_ours_is_shown_or_alerted_on(self):
        used = {metrics.by_series(CATALOGUE)[s.metric].name for _, expr in expressions() for s in metrics.selectors(expr)
                if s.metric in metrics.by_series(CATALOGUE)}
        unused = set(CATALOGUE) - used
        self.assertEqual(unused, {"vllm:request_decode_time_seconds", "vllm:request_params_n"})  # for others' dashboards

    def test_the_objectives_bound_is_a_bucket_edge(self):
        self.assertIn(rules.FIRST_TOKEN_SECONDS, CATALOGUE["vllm:time_to_first_token_seconds"].buckets)


class Dashboards(unittest.TestCase):
    def each(self):
        for name, board in BOARDS.items():
            for p in panels(board):
                yield f"{name}: {p['title']}", p

    def test_ids_are_unique_and_panels_do_not_overlap(self):
        self.assertEqual(len({b["uid"] for b in BOARDS.values()}), len(BOARDS))
        for name, board in BOARDS.items():
            ids = [p["id"] for p in board["panels"]]
            self.assertEqual(len(set(ids)), len(ids), name)
            titles = [p["title"] for p in panels(board)]
            self.assertEqual(len(set(titles)), len(titles), name)
            cells: set = set()
            for p in board["panels"]:
                g = p["gridPos"]
                own = {(x, y) for x in range(g["x"], g["x"] + g["w"]) for y in range(g["y"], g["y"] + g["h"])}
                self.assertFalse(own & cells, p["title"])
                self.assertLessEqual(g["x"] + g["w"], 24)
                cells |= own

    def test_panels_say_what_they_show_and_in_which_unit(self):
        for where, p in self.each():
            self.assertRegex(p["description"], r"^[A-Z(0-9].{15,}\.$", where)
            self.assertTrue(p["fieldConfig"]["defaults"]["unit"], where)
            for target in p["targets"]:
                if len(p["targets"]) > 1:
                    self.assertNotEqual(target["legendFormat"], "__auto", where)

    def test_the_data_source_is_the_variable(self):
        for name, board in BOARDS.items():
            uids = set(re.findall(r'"uid": "([^"]*)"', json.dumps(board))) - {board["uid"]}
            self.assertEqual(uids, {"${datasource}"}, name)

    def test_variables_are_defined_and_used(self):
        for name, board in BOARDS.items():
            text = json.dumps(board["panels"]) + json.dumps(board["annotations"])
            defined = {v["name"] for v in board["templating"]["list"]}
            used = set(re.findall(r"\$\{?([a-z]\w*)", text))
            self.assertEqual(used - defined, set(), name)
            self.assertEqual(defined - used - {"datasource"}, set(), name)

    def test_rates_follow_the_scrape_interval_and_selectors_the_variables(self):
        for where, p in self.each():
            for target in p["targets"]:
                for window in re.findall(r"(?:rate|increase)\([^[]*\[([^\]]*)\]", target["expr"]):
                    self.assertIn(window, ("$__rate_interval", "1h"), where)
                for s in metrics.selectors(target["expr"]):
                    wanted = {("cluster", "=~", "$cluster"), ("namespace", "=~", "$namespace"), ("job", "=~", "$job")}
                    self.assertLessEqual(wanted, set(s.matchers), where)

    def test_each_has_a_picture_in_the_docs(self):
        page = (ROOT / "docs" / "dashboards.md").read_text()
        pictures = {name: ROOT / "docs" / "images" / f"dashboard-{name}.png" for name in BOARDS}
        for name, path in pictures.items():
            self.assertTrue(path.exists(), name)
            self.assertIn(f"](images/{path.name})", page)
        self.assertLess(sum(path.stat().st_size for path in pictures.values()), 1 << 20)

    def test_they_fit_a_config_map(self):
        for path in (CHART / "dashboards").glob("*.json"):
            self.assertLess(path.stat().st_size, 100_000, path.name)


def anchors(page: pathlib.Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {re.sub(r"[^\w -]", "", h).strip().lower().replace(" ", "-") for h in headings}


class Alerts(unittest.TestCase):
    def test_each_has_words_a_severity_and_a_page(self):
        pages = anchors(ROOT / rules.RUNBOOK)
        names = [a.name for a in rules.alerts()]
        self.assertEqual(len(set(names)), len(names))
        for alert in rules.alerts():
            self.assertIn(alert.severity, ("critical", "warning", "info"))
            self.assertRegex(alert.summary, r"^[A-Z].*[^.]$", alert.name)
            self.assertRegex(alert.description, r"\.$", alert.name)
            self.assertIn(alert.anchor().partition("#")[2], pages, alert.name)

    def test_the_page_has_no_alert_that_is_gone(self):
        named = set(re.findall(r"^### (Millrace\w+)$", (ROOT / rules.RUNBOOK).read_text(), re.M))
        self.assertEqual(named, {a.name for a in rules.alerts()})

    def test_the_page_names_panels_and_alerts_that_exist(self):
        text = (ROOT / rules.RUNBOOK).read_text()
        titles = {p["title"] for board in BOARDS.values() for p in panels(board)}
        named = {" ".join(words.split()) for words in re.findall(r"(?<!\*)\*([A-Z][^*]+)\*(?!\*)", text)} - {"Targets", "shortest"}
        self.assertGreater(len(named), 10)
        self.assertEqual(named - titles, set())
        self.assertEqual(set(re.findall(r"\bMillrace[A-Z]\w+", text)) - {a.name for a in rules.alerts()}, set())

    def test_labels_in_words_are_labels_of_the_alert(self):
        for alert in rules.alerts():
            expr = alert.conditions[0][0]
            has = metrics.grouped_labels(expr) | (metrics.TARGET_LABELS if "by (" not in expr else set())
            for s in metrics.selectors(expr):
                has |= {"namespace", "job", "cluster"} | rules.recorded().get(s.metric, set())
            for label in re.findall(r"\$labels\.(\w+)", alert.description + alert.summary):
                self.assertIn(label, has, alert.name)

    def test_every_selector_names_the_service(self):
        """vllm: metrics are other servers' as well."""
        for group in rules.GROUPS:
            for rule in [*group.recordings, *group.alerts]:
                expr = rule.expr() if isinstance(rule, rules.Alert) else rule.expr
                for s in metrics.selectors(expr):
                    if s.metric not in rules.recorded():
                        self.assertIn(("job", "=~", ".*millrace.*"), s.matchers, rule.name)


if __name__ == "__main__":
    unittest.main(verbosity=2)
