#!/usr/bin/env python3
"""Dashboards, rules and the chart's queries against the metric catalogue, and their form. Needs neither Prometheus nor Helm."""

import hashlib
import json
import pathlib
import re
import struct
import sys
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT / "monitoring"), str(ROOT / "scripts")]

import chart_files  # noqa: E402
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


def png_texts(data: bytes) -> dict[str, str]:
    """The tEXt chunks of a PNG."""
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    found, at = {}, 8
    while at < len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        if kind == b"tEXt":
            key, _, text = data[at + 8:at + 8 + size].partition(b"\0")
            found[key.decode("latin-1")] = text.decode("latin-1")
        at += 12 + size
    return found


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
        self.assertEqual(unused, {"vllm:request_inference_time_seconds", "vllm:request_params_n"})  # for others' dashboards

    def test_the_objectives_bounds_are_bucket_edges(self):
        for _, what, _, histogram, _, seconds in rules.LATENCIES:
            self.assertIn(seconds, CATALOGUE[histogram].buckets, what)


# Texts for people, and templates, that may name metrics.
TEXTS = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md", ROOT / "ARCHITECTURE.md", ROOT / "helm" / "README.md",
         CHART / "values.yaml", *sorted(p for p in (CHART / "templates").rglob("*") if p.is_file()), *sorted((CHART / "ci").glob("*.yaml"))]
# Not the images, services and hosts that end in millrace:port or millrace:tag, whose names go on to the left or whose tags are numbers.
METRIC_LIKE = re.compile(r"(?<![\w./-])(?:vllm:|millrace[:_])[a-z][\w:]*(?:\*|(?<!:))")


def unknown_metrics(text: str) -> set[str]:
    """Names in a text that look like metrics and are neither exported nor recorded. Those that end in * stand for several."""
    known = set(CATALOGUE) | set(metrics.by_series(CATALOGUE)) | set(rules.recorded())
    return {name for name in METRIC_LIKE.findall(text)
            if name not in known and not (name.endswith("*") and any(k.startswith(name[:-1]) for k in known))}


def settings() -> tuple[set[str], set[str]]:
    """Fields of the configuration, and values of the chart with the maps that hold them."""
    fields = {f"{section}.{name}" for section, name, _, _ in chart_files.fields()}
    leaves = [path for path, _, _ in chart_files.values()]
    leaves += [f"config.{section}.{name}" for section, name, _, _ in chart_files.fields() if name not in chart_files.OWNED.get(section, ())]
    return fields, {path[:end] for path in leaves for end in [*(m.start() for m in re.finditer(r"\.", path)), len(path)]}


FIELDS, VALUES = settings()
FILE = r"\.(?:md|py|cc|h|yaml|json|tpl|sh|txt)$"


def unknown_settings(page: str) -> set[str]:
    """What a page of ours names in `...` or gives to --set and that does not exist: fields, values, and keys or words by themselves."""
    words = {p.rpartition(".")[2] for p in FIELDS | VALUES} | {w for m in CATALOGUE.values() for listed in m.labels.values() for w in listed}
    words |= {label for m in CATALOGUE.values() for label in m.labels}
    wrong = set()
    for span in re.findall(r"`([^`\n]+)`", page):
        # `a.b`, `a.b=1`, `a.b: word`
        name = re.fullmatch(r"([A-Za-z][\w.]*?)\.?(?:=\S+|: \S+)?", span)
        if not name or re.search(FILE, name[1]):
            continue
        if "." in name[1]:
            wrong |= {name[1]} - FIELDS - VALUES
        elif re.search(r"_|[a-z][A-Z]", name[1]) and name[1] not in CATALOGUE:
            wrong |= {name[1]} - words
    for line in re.findall(r"^    (\w+ .*)$", page, re.M):
        known = VALUES if line.startswith("helm ") else FIELDS
        wrong |= set(re.findall(r"--set(?:-string)? ([\w.]+)=", line)) - known
    return wrong


class Texts(unittest.TestCase):
    def test_metrics_named_anywhere_are_exported(self):
        found = 0
        for path in TEXTS:
            text = path.read_text()
            found += len(METRIC_LIKE.findall(text))
            self.assertEqual(unknown_metrics(text), set(), path.relative_to(ROOT))
        self.assertGreater(found, 5)

    def test_alerts_named_anywhere_exist(self):
        named = {name for path in TEXTS for name in re.findall(r"\bMillrace[A-Z]\w+", path.read_text())}
        self.assertEqual(named - {a.name for a in rules.alerts()}, set())

    def test_settings_named_for_operators_exist(self):
        for name in ("alerts", "operations", "dashboards"):
            self.assertEqual(unknown_settings((ROOT / "docs" / f"{name}.md").read_text()), set(), name)

    def test_what_does_not_exist_is_noticed(self):
        """The checks themselves: each of these is one mistake, and each of the others is none."""
        for wrong in ("`vllm:num_requests_waitin`", "sum(vllm:gone{a=1})", "look at millrace_steps_seconds.", "(millrace_cells_redy)",
                      "`millrace:cells_ready:min`", "millrace:queue_use", "`millrace_gone_*`", "millrace_step_seconds_total"):
            self.assertEqual(len(unknown_metrics(wrong)), 1, wrong)
        for right in ("vllm:num_requests_waiting: so many", "`millrace_step_seconds_bucket`", "millrace_step_seconds.", "millrace:cells_ready:max,",
                      "`millrace_cell_*`", "services/lfm-millrace:http/proxy", "localhost/millrace:cpu", "millrace:0.1.0", "names under vllm: are"):
            self.assertEqual(unknown_metrics(right), set(), right)
        for wrong in ("`cells.replica`", "`config.gateway.queue_timeout`", "`gateway.port2: 5`", "`config.grid.lanes=2`", "`maxReplica`", "`queue_ful`",
                      "    helm upgrade x --set cells.replica=3", "    helm upgrade x --set cache.kv_tokens=3", "    millrace serve --set cells.replicas=3"):
            self.assertEqual(len(unknown_settings(wrong)), 1, wrong)
        for right in ("`cells.replicas`", "`cells.autoscaling`", "`deadlines.drain_ms`", "`config.deadlines.drain_ms`", "`maxReplicas`", "`queue_full`",
                      "`model.source.kind: pvc`", "`docs/alerts.md`", "`rules.py`", "`gdb -p`", "    helm upgrade x --set config.cache.kv_tokens=3",
                      "    millrace serve --set cache.kv_tokens=3"):
            self.assertEqual(unknown_settings(right), set(), right)


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

    def test_pictures_are_of_the_dashboards_as_they_are(self):
        for name in BOARDS:
            wanted = hashlib.sha256((CHART / "dashboards" / f"{name}.json").read_bytes()).hexdigest()
            drawn = png_texts((ROOT / "docs" / "images" / f"dashboard-{name}.png").read_bytes()).get("dashboard-sha256")
            self.assertEqual(drawn, wanted, f"{name}: draw the dashboards anew, docs/dashboards.md says how")

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

    def test_the_page_names_panels_that_exist(self):
        text = (ROOT / rules.RUNBOOK).read_text()
        titles = {p["title"] for board in BOARDS.values() for p in panels(board)}
        named = {" ".join(words.split()) for words in re.findall(r"(?<!\*)\*([A-Z][^*]+)\*(?!\*)", text)} - {"Targets", "shortest"}
        self.assertGreater(len(named), 10)
        self.assertEqual(named - titles, set())

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
