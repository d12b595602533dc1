#!/usr/bin/env python3
"""The chart under real Helm 3 and 4: `chart_test.py GROUP`. Without scripts/test-helm-venv's folder it counts as skipped.

MILLRACE_BIN is the binary that must load what is rendered. MILLRACE_UPDATE_GOLDEN=1 writes tests/helm/golden anew.
"""

import copy
import difflib
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import support  # noqa: E402  (goes on in the venv)
from support import APIS, CHART, CI_FILES, HELMS, KUBERNETES, ROOT, VENV, parallel, pod_templates, refusal, render, run_helm  # noqa: E402

import yaml  # noqa: E402
import jsonschema_rs  # noqa: E402
import values_space as space  # noqa: E402
from coupled_values import CONTEXTS, refusals  # noqa: E402
import generated_values as generated  # noqa: E402
from hypothesis import HealthCheck, Phase, given, seed, settings  # noqa: E402
from objects_check import problems  # noqa: E402

sys.path.insert(0, str(ROOT / "monitoring"))
import metrics  # noqa: E402

BIN = os.environ.get("MILLRACE_BIN", str(ROOT / "build/cpu/bin/millrace"))
SAMPLE = str(ROOT / "models" / "sample")
TEMPLATES = CHART / "templates"


def merged(a: dict, b: dict) -> dict:
    out = copy.deepcopy(a)
    for key, value in b.items():
        out[key] = merged(out[key], value) if isinstance(value, dict) and isinstance(out.get(key), dict) else value
    return out


# --- what templates write into YAML ----------------------------------------------------------------------------------

ACTION = re.compile(r"\{\{-?\s*(.*?)\s*-?\}\}")
CONTROL = re.compile(r"(if|else|end|range|with|define|continue|fail|\$[\w$, ]*:?=|/\*)")
# Numbers, and functions whose result YAML reads as what it was.
TYPED = re.compile(r"(int|int64|add|mul|max|toYaml|toJson|include \"millrace\.configValue\")\s([^|]|\((.*)\)|\| (min|max) \d+)*$"
                   r"|.*\|\s*(quote|squote|toJson|int|int64|nindent \d+)$")
LITERAL = re.compile(r"/|[-.][a-z]{3,}")  # beside an action: the whole is a text whatever the action gives


def untyped(text: str) -> list[str]:
    """Lines of a template in which a value becomes a YAML scalar or key as it stands: `123`, `1e3`, `null` or `yes` would then be no text."""
    found = []
    for line in re.sub(r"\{\{-? ?/\*.*?\*/ ?-?\}\}", "", text, flags=re.S).splitlines():
        line = re.sub(r"\s+# .*", "", line)
        actions = [a for a in ACTION.findall(line) if not CONTROL.match(a)]
        key, _, value = re.sub(r"^\s*(- )*", "", line).rpartition(": ") if re.search(r"\S: \S", line) else ("", "", line.strip())
        if not actions or not re.match(r"\s*(- |\S+.*: |\{\{.*\}\}:$)", line):
            continue  # text of a define, which is judged where it is included
        literal = LITERAL.search(ACTION.sub("", value))
        keys = ACTION.findall(key or line if line.rstrip().endswith("}}:") else key)
        if not literal and not all(TYPED.match(a) for a in actions) or not all(TYPED.match(a) for a in keys):
            found.append(line.strip())
    return found


def faults(objects: list[dict], kube: str) -> list[str]:
    support.indexed(objects)
    return [e for o in objects for e in support.schema_errors(o, kube)] + problems(objects)


# --- loading what is rendered ----------------------------------------------------------------------------------------

_loaded: dict[tuple, subprocess.CompletedProcess] = {}


def loads(objects: list[dict]) -> list[tuple[str, subprocess.CompletedProcess]]:
    """Every container that takes a configuration, with what `millrace plan` says to its file and its --set arguments.
    Status 2 is a refused configuration; 1 is one that does not fit the sample model or this machine."""
    files = {f: text for o in objects if o["kind"] == "ConfigMap" for f, text in o.get("data", {}).items()}
    found = []
    for where, template in pod_templates(objects):
        for c in template["spec"]["containers"] + template["spec"].get("initContainers", []):
            if "--config" not in c["args"]:
                continue
            at = c["args"].index("--config")
            text = files[pathlib.PurePath(c["args"][at + 1]).name]
            sets = [a.replace("$(POD_NAME)", "pod-0") for a in c["args"][at + 2:]]
            key = (text, *sets)
            if key not in _loaded:
                with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
                    file.write(text)
                    file.flush()
                    _loaded[key] = subprocess.run([BIN, "plan", "--config", file.name, *sets, "--set", f"model.path={SAMPLE}"],
                                                  capture_output=True, text=True, timeout=60)
            found.append((f"{where} {c['name']}", _loaded[key]))
    return found


# Pods of the release "demo" that Prometheus asks: gateways, and leaders of cells.
RELEASE_PODS = "demo-millrace-(gateway-[a-z0-9]+-[a-z0-9]+|cell-[0-9]+(-[0-9]+)?)"


class Lint(unittest.TestCase):
    def test_helm_lint_is_strict_and_silent(self):
        jobs = [(helm, path, kube) for helm in HELMS for path in CI_FILES for kube in (KUBERNETES[0], KUBERNETES[-1])
                if not ("image-volume" in path.name and kube == KUBERNETES[0])]
        results = parallel(lambda j: run_helm(j[0], "lint", "--strict", str(CHART), "--values", str(j[1]), "--kube-version", j[2]), jobs)
        for job, result in zip(jobs, results):
            self.assertEqual(result.returncode, 0, (job, result.stdout, result.stderr))
            self.assertNotRegex(result.stdout, r"\[(WARNING|ERROR)\]", job)

    def test_yaml_is_tidy(self):
        rules = "{extends: default, rules: {line-length: {max: 200}, document-start: disable, braces: {max-spaces-inside: 1}}}"
        files = [CHART / "Chart.yaml", CHART / "values.yaml", *CI_FILES]
        result = subprocess.run([VENV / "bin" / "yamllint", "--strict", "-d", rules, *files], capture_output=True, text=True)
        self.assertEqual(result.returncode, 0, result.stdout)

    def test_templates_keep_texts_texts(self):
        # What the schema or the chart's own files close: names of fields, durations with their unit, names of files.
        closed = {"{{ $section }}:", '{{ $name }}: {{ include "millrace.configValue" $value }}', "{{ base $path }}: |",
                  "interval: {{ $m.serviceMonitor.interval }}", "interval: {{ $m.podMonitor.interval }}", "interval: {{ $monitor.interval }}"}
        quoted = 0
        for path in sorted(TEMPLATES.rglob("*")):
            if path.suffix not in (".yaml", ".tpl"):
                continue
            text = path.read_text()
            self.assertEqual(set(untyped(text)) - closed, set(), path.name)
            for line in re.findall(r"^.*: \{\{ (?!int |mul |add ).* \| quote \}\}$", text, re.M):  # each that goes is seen
                self.assertNotEqual(untyped(line.replace(" | quote", "")), [], line)
                quoted += 1
        self.assertGreater(quoted, 50)
        for line in ("  claimName: {{ .x }}", "  - {{ .x }}", "names: [{{ .x }}]", "a: {{ .x }}-1", "a: {{ if .y }}{{ .x }}{{ end }}", "{{ .x }}: a"):
            self.assertEqual(untyped(line), [line.strip()])

    def test_generated_parts_are_current(self):
        result = subprocess.run([sys.executable, ROOT / "scripts" / "chart_files.py", "--check"], capture_output=True, text=True)
        self.assertEqual(result.returncode, 0, result.stderr)

    def test_schema_has_every_value_and_no_other(self):
        values = support.load_yaml((CHART / "values.yaml").read_text())
        for path, _ in space.leaves():
            tree = values
            for name in path[:1] if path[0] == "config" else path:
                self.assertIn(name, tree, f"{'.'.join(path)} is in the schema, but not in values.yaml")
                tree = tree[name]
        self.assertTrue(jsonschema_rs.Draft7Validator(space.SCHEMA).is_valid(values))

    def test_package_holds_what_it_should(self):
        for helm in HELMS:
            with tempfile.TemporaryDirectory() as folder:
                self.assertEqual(run_helm(helm, "package", str(CHART), "--destination", folder).returncode, 0)
                names = subprocess.run(["tar", "tzf", f"{folder}/millrace-0.1.0.tgz"], capture_output=True, text=True).stdout.split()
            wanted = {f"millrace/{p.relative_to(CHART)}" for p in CHART.rglob("*") if p.is_file()
                      and p.relative_to(CHART).parts[0] != "ci" and p.name != ".helmignore"}
            self.assertEqual({n for n in names if not n.endswith(".helmignore")}, wanted, helm)


def without_files(o: dict) -> dict:
    """Without rules and dashboards, which are files of their own."""
    if o["kind"] == "PrometheusRule":
        return merged(o, {"spec": {"groups": [g["name"] for g in o["spec"]["groups"]]}})
    if o["kind"] == "ConfigMap" and "-dashboard-" in o["metadata"]["name"]:
        (name, text), = o["data"].items()
        assert text == (CHART / "dashboards" / name).read_text(), name
        return merged(o, {"data": {name: "as in the chart"}})
    return o


class Matrix(unittest.TestCase):
    def test_every_file_version_and_set_of_apis(self):
        """Renders alike under both Helms, is strictly valid for that Kubernetes, and fits together."""
        jobs = [(path, kube, apis) for path in CI_FILES for kube in KUBERNETES for apis in ((), APIS)]

        def both(job):
            path, kube, apis = job
            try:
                return [render(helm, path, kube=kube, apis=apis) for helm in HELMS]
            except support.Refused as e:
                return str(e)

        rendered = 0
        for (path, kube, apis), result in zip(jobs, parallel(both, jobs)):
            with self.subTest(file=path.name, kube=kube, apis=bool(apis)):
                if "image-volume" in path.name and kube in ("1.28", "1.29", "1.30"):
                    self.assertIn("imageVolume needs Kubernetes 1.31", result)
                    continue
                self.assertNotIsInstance(result, str, result)
                self.assertEqual(support.indexed(result[0]), support.indexed(result[1]))
                self.assertEqual(faults(result[1], kube), [])
                rendered += len(result[1])
        print(f"{len(jobs)} combinations under {len(HELMS)} Helms, {rendered} objects")

    def test_every_template_is_exercised(self):
        seen = set()
        for text in parallel(lambda p: run_helm("helm4", "template", "demo", str(CHART), "--values", str(p), "--kube-version", "1.34").stdout,
                             CI_FILES):
            seen |= set(re.findall(r"^# Source: millrace/templates/(\S+)", text, re.M))
        for path in TEMPLATES.rglob("*.yaml"):
            self.assertIn(str(path.relative_to(TEMPLATES)), seen)

    def test_backend_follows_the_api_unless_it_is_set(self):
        path = CHART / "ci" / "cpu-multi-node-values.yaml"
        kinds = lambda objects: {o["kind"] for o in objects}
        self.assertIn("LeaderWorkerSet", kinds(render("helm4", path, apis=APIS)))
        self.assertNotIn("LeaderWorkerSet", kinds(render("helm4", path)))
        values = support.load_yaml(path.read_text())
        self.assertIn("LeaderWorkerSet", kinds(render("helm4", merged(values, {"cells": {"backend": "lws"}}))))
        self.assertNotIn("LeaderWorkerSet", kinds(render("helm4", merged(values, {"cells": {"backend": "statefulset"}}), apis=APIS)))

    def test_golden(self):
        for path, objects in zip(CI_FILES, parallel(lambda p: render("helm4", p, kube="1.34", apis=APIS), CI_FILES)):
            golden = ROOT / "tests" / "helm" / "golden" / path.name.replace("-values", "")
            text = yaml.safe_dump_all([without_files(o) for _, o in sorted(support.indexed(objects).items())], sort_keys=True, width=140)
            if os.environ.get("MILLRACE_UPDATE_GOLDEN"):
                golden.write_text(text)
            difference = difflib.unified_diff(golden.read_text().splitlines(), text.splitlines(), "golden", "now", lineterm="", n=1)
            self.assertEqual(golden.read_text(), text, f"{golden.name}\n" + "\n".join(difference))


class Behaviour(unittest.TestCase):
    def pod_annotations(self, values: dict) -> dict:
        return {where: t["metadata"].get("annotations") for where, t in pod_templates(render("helm4", values))}

    def test_a_change_of_configuration_rolls_the_pods_that_read_it(self):
        base = support.load_yaml((CHART / "ci" / "everything-values.yaml").read_text())
        before = self.pod_annotations(base)
        after = self.pod_annotations(merged(base, {"config": {"cache": {"kv_tokens": 2000000}}}))
        for pod in ("Deployment/everything-gateway", "StatefulSet/everything-cell"):
            self.assertNotEqual(before[pod]["checksum/config"], after[pod]["checksum/config"])
        after = self.pod_annotations(merged(base, {"secrets": {"cell": {"value": "another" * 6}}}))
        self.assertNotEqual(before["StatefulSet/everything-cell"], after["StatefulSet/everything-cell"])
        for others in ({"monitoring": {"serviceMonitor": {"interval": "30s"}}}, {"gateway": {"replicas": 7, "autoscaling": {"enabled": False}}}):
            self.assertEqual(before, self.pod_annotations(merged(base, others)), others)

    def test_the_start_budget_follows_the_models_size(self):
        for size, seconds in ((0.1, 121), (48, 360), (1000, 5120)):
            objects = support.indexed(render("helm4", {"mode": "standalone", "model": {"sizeGiB": size}}))
            config = support.load_yaml(objects["ConfigMap/demo-millrace-gateway"]["data"]["standalone.yaml"])
            self.assertEqual(config["deadlines"]["load_ms"], seconds * 1000)
            probe = objects["Deployment/demo-millrace-gateway"]["spec"]["template"]["spec"]["containers"][0]["startupProbe"]
            self.assertEqual(probe["httpGet"]["path"], "/health/ready")
            self.assertGreaterEqual(probe["periodSeconds"] * probe["failureThreshold"], seconds)
            objects = support.indexed(render("helm4", {"model": {"sizeGiB": size}}))
            probe = objects["StatefulSet/demo-millrace-cell"]["spec"]["template"]["spec"]["containers"][0]["startupProbe"]
            self.assertEqual(probe["httpGet"]["path"], "/health/started")
            self.assertGreater(probe["periodSeconds"] * probe["failureThreshold"], seconds + 60)  # the supervisor's own limit comes first
        self.assertEqual(support.load_yaml(support.indexed(render("helm4", {"config": {"deadlines": {"load_ms": 5}}}))[
            "ConfigMap/demo-millrace-cell"]["data"]["cell.yaml"])["deadlines"]["load_ms"], 5)

    def test_gateways_roll_without_a_gap_and_alone_they_make_way(self):
        spec = support.indexed(render("helm4", {}))["Deployment/demo-millrace-gateway"]["spec"]
        self.assertEqual(spec["strategy"], {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}})
        alone = support.indexed(render("helm4", {"mode": "standalone", "model": {"sizeGiB": 1000}}))["Deployment/demo-millrace-gateway"]["spec"]
        self.assertEqual(alone["strategy"], {"type": "Recreate"})
        self.assertEqual(alone["progressDeadlineSeconds"], 5120 + 600)

    def test_threads_follow_the_cores_of_the_pod(self):
        """The binary would count the cores of the whole node."""
        for limits, requests, workers, threads in (("8", "2", 4, 2), (None, "3500m", 2, 1), ("1", "1", 4, 1), (None, "64", 1, 64)):
            resources = {"requests": {"cpu": requests}, "limits": {"cpu": limits} if limits else {}}
            cells = {"workersPerNode": workers, "lanes": workers, "resources": resources}
            config = support.indexed(render("helm4", {"cells": cells}))["ConfigMap/demo-millrace-cell"]["data"]["cell.yaml"]
            self.assertEqual(support.load_yaml(config)["grid"]["threads_per_rank"], threads, (limits, requests, workers))

    def test_pods_drain_before_they_end(self):
        values = {"config": {"deadlines": {"drain_ms": 20500}}, "gateway": {"port": 8080, "drain": {"preStopSeconds": 7}}}
        objects = support.indexed(render("helm4", values, kube="1.28"))
        for name, url, pause, limit in (("Deployment/demo-millrace-gateway", "http://127.0.0.1:8080", "7000", "38"),
                                        ("StatefulSet/demo-millrace-cell", "http://127.0.0.1:7701", "0", "31")):
            hook = objects[name]["spec"]["template"]["spec"]["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
            self.assertEqual(hook, ["millrace", "drain", "--url", url, "--pause-ms", pause, "--timeout-s", limit])

    def test_affinity_of_the_values_and_of_the_chart_go_together(self):
        term = {"topologyKey": "zone", "labelSelector": {"matchLabels": {"a": "1e3"}}}
        required = "requiredDuringSchedulingIgnoredDuringExecution"
        preferred = {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 1, "podAffinityTerm": term}]}
        values = {"secrets": {"nodeAgent": {"value": "s" * 32}}, "cells": {
            "nodes": 2, "stages": 2, "onePerNode": True, "topologyKey": "rack", "runtimeClassName": "123",
            "affinity": {"podAffinity": preferred, "podAntiAffinity": {required: [term]}, "nodeAffinity": {required: {
                "nodeSelectorTerms": [{"matchExpressions": [{"key": "gpu", "operator": "Exists"}]}]}}}}}
        for helm in HELMS:
            objects = support.indexed(render(helm, values))
            self.assertEqual([e for o in objects.values() for e in support.schema_errors(o, "1.34")], [])
            for name in ("demo-millrace-cell-0", "demo-millrace-cell-0-node"):
                spec = objects[f"StatefulSet/{name}"]["spec"]["template"]["spec"]
                self.assertEqual(spec["runtimeClassName"], "123")
                affinity = spec["affinity"]
                self.assertEqual(affinity["nodeAffinity"], values["cells"]["affinity"]["nodeAffinity"])
                own = {"app.kubernetes.io/name": "millrace", "app.kubernetes.io/instance": "demo", "app.kubernetes.io/component": "cell"}
                self.assertEqual(affinity["podAntiAffinity"], {required: [
                    term, {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": own}}]})
                self.assertEqual(affinity["podAffinity"], preferred | {required: [
                    {"topologyKey": "rack", "labelSelector": {"matchLabels": own | {"millrace/cell": "0"}}}]})
            alone = support.indexed(render(helm, {"mode": "standalone", "cells": {"runtimeClassName": "nvidia"}}))
            self.assertEqual(alone["Deployment/demo-millrace-gateway"]["spec"]["template"]["spec"]["runtimeClassName"], "nvidia")

    def test_names_that_are_words_of_yaml_stay_names(self):
        """Of the release, its namespace and its objects."""
        for helm in HELMS:
            for release, namespace, name in (("123", "1e3", "null"), ("y", "123", "true"), ("1e3", "0x1", "off")):
                result = run_helm(helm, "template", release, str(CHART), "--namespace", namespace, "--set-string", f"fullnameOverride={name}",
                                  "--set-string", f"nameOverride={name}", *(word for api in APIS for word in ("--api-versions", api)))
                self.assertEqual(result.returncode, 0, result.stderr)
                objects = support.load_objects(result.stdout)
                self.assertEqual([e for o in objects for e in support.schema_errors(o, "1.34")], [])
                self.assertEqual({o["metadata"]["namespace"] for o in objects}, {namespace})
                self.assertEqual({o["metadata"]["labels"]["app.kubernetes.io/instance"] for o in objects}, {release})
                self.assertEqual({o["metadata"]["name"].split("-")[0] for o in objects}, {name})

    def test_devices_and_rdma_are_asked_for(self):
        objects = support.indexed(render("helm4", CHART / "ci" / "lws-moe-rdma-values.yaml"))
        template = objects["LeaderWorkerSet/demo-millrace-cell"]["spec"]["leaderWorkerTemplate"]
        for role in ("leaderTemplate", "workerTemplate"):
            limits = template[role]["spec"]["containers"][0]["resources"]["limits"]
            self.assertEqual((limits["nvidia.com/gpu"], limits["rdma/hca_shared_devices_a"]), (8, 8))

    def test_files_of_rules_and_dashboards_are_picked_up(self):
        with tempfile.TemporaryDirectory() as folder:
            chart = pathlib.Path(folder) / "millrace"
            shutil.copytree(CHART, chart)
            for name in "ab":
                rule = {"alert": f"Gone{name}", "expr": "millrace_cells_ready == 0", "for": "1m", "annotations": {"summary": "{{ $labels.pod }}"}}
                (chart / "rules" / f"{name}.yaml").write_text(yaml.safe_dump({"groups": [{"name": f"extra-{name}", "rules": [rule]}]}))
            (chart / "dashboards" / "Some_board.json").write_text('{"title": "{{ instance }}", "panels": []}\n')
            for helm in HELMS:
                objects = support.indexed(render(helm, {}, apis=APIS, chart=chart))
                self.assertEqual([e for o in objects.values() for e in support.schema_errors(o, "1.34")], [])
                groups = objects["PrometheusRule/demo-millrace"]["spec"]["groups"]
                self.assertEqual([g["name"] for g in groups if g["name"].startswith("extra-")], ["extra-a", "extra-b"])
                self.assertIn("{{ $labels.pod }}", str(groups))
                board = objects["ConfigMap/demo-millrace-dashboard-some-board"]
                self.assertEqual(board["data"]["Some_board.json"], '{"title": "{{ instance }}", "panels": []}\n')
                self.assertEqual(board["metadata"]["labels"]["grafana_dashboard"], "1")
                self.assertNotIn("PrometheusRule/demo-millrace", support.indexed(render(helm, {}, chart=chart)))

    def test_rules_are_the_releases_own(self):
        """Each selector takes this release's gateways alone, and the objectives are the values'."""
        edges = space.SCHEMA["properties"]["monitoring"]["properties"]["slo"]["properties"]["firstTokenSeconds"]["enum"]
        self.assertEqual([f"{e:g}" for e in edges], metrics.catalogue()["vllm:time_to_first_token_seconds"].buckets)
        for helm in HELMS:
            for seconds, edge in ((0.25, 'le="0.25"'), (2560, 'le=~"2560([.]0)?"')):
                slo = {"availability": 0.95, "firstToken": 0.9, "firstTokenSeconds": seconds}
                values = {"monitoring": {"slo": slo, "rules": {"runbookUrl": "https://wiki/alerts"}}}
                groups = support.indexed(render(helm, values, apis=APIS))["PrometheusRule/demo-millrace"]["spec"]["groups"]
                every = [rule for group in groups for rule in group["rules"]]
                expressions = {r.get("record", r.get("alert")): " ".join(r["expr"].split()) for r in every}
                for name, expr in expressions.items():
                    for selector in metrics.selectors(expr):
                        if selector.metric not in expressions:
                            self.assertEqual(selector.matchers[:2], [("namespace", "=", "serving"),
                                                                     ("pod", "=~", RELEASE_PODS)], name)
                    self.assertNotIn("job=~", expr)
                pods = f'{{namespace="serving", pod=~"{RELEASE_PODS}"}}'
                for what, value in (("requests:objective", 0.95), ("first_token:objective", 0.9), ("first_token:bound_seconds", seconds)):
                    self.assertEqual(expressions[f"millrace:{what}"],
                                     f"{value} * group by (cluster, namespace, job) (millrace_build_info{pods})")
                self.assertIn(edge, expressions["millrace:first_token:bad_rate5m"])
                links = {r["annotations"]["runbook_url"].partition("#")[0] for r in every if "alert" in r}
                self.assertEqual(links, {"https://wiki/alerts"})

    def test_notes_name_what_is_there(self):
        """As a template of a ConfigMap: helm install would ask a cluster."""
        wrapped = ("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: notes}\ndata:\n  text: |\n    {{- include \"notes\" . | nindent 4 }}\n"
                   "{{- define \"notes\" }}" + (TEMPLATES / "NOTES.txt").read_text() + "{{ end }}\n")
        with tempfile.TemporaryDirectory() as folder:
            chart = pathlib.Path(folder) / "millrace"
            shutil.copytree(CHART, chart)
            (chart / "templates" / "notes.yaml").write_text(wrapped)
            jobs = [(helm, path) for helm in HELMS for path in CI_FILES]
            for (_, path), objects in zip(jobs, parallel(lambda j: render(j[0], j[1], apis=APIS, chart=chart), jobs)):
                objects = support.indexed(objects)
                notes = objects["ConfigMap/notes"]["data"]["text"]
                self.assertNotIn("<no value>", notes)
                for kind, name in re.findall(r"(deployment|service)/([-a-z0-9]+)", notes):
                    self.assertIn(f"{kind.title()}/{name}", objects)
                for name in re.findall(r"\((?:Pod|Service)Monitor (\S+)\)", notes):
                    self.assertTrue({f"PodMonitor/{name}", f"ServiceMonitor/{name}"} & set(objects))
                self.assertEqual("one gateway" in notes, path.name == "cpu-multi-node-values.yaml")


class Rules(unittest.TestCase):
    def test_each_rule_refuses_with_the_values_name(self):
        def said(job):
            helm, (_, values) = job
            tree = {k: v for k, v in values.items() if k not in ("kube", "release")}
            return refusal(helm, tree, kube=values.get("kube", "1.34"), release=values.get("release", "demo"))

        cases = refusals()
        jobs = [(helm, case) for helm in HELMS for case in cases]
        for (helm, (start, values)), message in zip(jobs, parallel(said, jobs)):
            with self.subTest(helm=helm, values=values):
                self.assertRegex(message, r"(execution error|error calling fail).*: " + re.escape(start))
        rules = re.findall(r'fail (?:\(printf )?"([^":]*)', (TEMPLATES / "_validate.tpl").read_text())
        for rule in rules:
            pattern = re.escape(rule).replace("%s", r"[\w.]+")
            self.assertTrue(any(re.match(pattern, start) for start, _ in cases), f"no case for the rule '{rule}'")
        self.assertGreaterEqual(len(cases), len(rules))

    def test_each_objective_is_its_own_value(self):
        """Whatever the others are: equal, one another's defaults, or swapped; and the file in the chart has the defaults."""
        of = {"availability": "requests:objective", "firstToken": "first_token:objective", "interToken": "inter_token:objective",
              "firstTokenSeconds": "first_token:bound_seconds", "interTokenSeconds": "inter_token:bound_seconds"}

        def recorded(groups: list[dict]) -> dict[str, str]:
            return {r["record"]: r["expr"] for g in groups for r in g["rules"] if "record" in r}

        def check(found: dict[str, str], slo: dict):
            for value, name in of.items():
                self.assertEqual(found[f"millrace:{name}"].partition(" * ")[0], str(slo[value]), value)
            for what in ("first_token", "inter_token"):
                seconds = slo["firstTokenSeconds" if what == "first_token" else "interTokenSeconds"]
                edge = f'le="{seconds}"' if isinstance(seconds, float) else f'le=~"{seconds}([.]0)?"'
                bad = [expr for name, expr in found.items() if name.startswith(f"millrace:{what}:bad_")]
                self.assertEqual(len(bad), 6)
                for expr in bad:
                    self.assertEqual(re.findall(r"le=[^,}]*", expr), [edge], what)

        defaults = support.load_yaml((CHART / "values.yaml").read_text())["monitoring"]["slo"]
        check(recorded(support.load_yaml((CHART / "rules" / "millrace.yaml").read_text())["groups"]), defaults)
        for numbers in ((0.99, 0.95, 2.5, 0.999, 0.2), (0.99, 0.999, 0.25, 0.99, 2.5), (0.95, 0.95, 5, 0.95, 5), (0.999, 0.999, 1, 0.999, 0.1),
                        (0.5, 0.99999, 2560, 0.9, 80)):
            slo = dict(zip(("availability", "firstToken", "firstTokenSeconds", "interToken", "interTokenSeconds"), numbers))
            for helm in HELMS:
                with self.subTest(helm=helm, slo=slo):
                    objects = support.indexed(render(helm, {"monitoring": {"slo": slo}}, apis=APIS))
                    check(recorded(objects["PrometheusRule/demo-millrace"]["spec"]["groups"]), slo)

    def test_bounds_are_bucket_edges(self):
        slo = space.SCHEMA["properties"]["monitoring"]["properties"]["slo"]["properties"]
        for value, histogram in (("firstTokenSeconds", "vllm:time_to_first_token_seconds"), ("interTokenSeconds", "vllm:inter_token_latency_seconds")):
            self.assertEqual([f"{e:g}" for e in slo[value]["enum"]], metrics.catalogue()[histogram].buckets)
            for helm in HELMS:
                self.assertIn(value, refusal(helm, {"monitoring": {"slo": {value: 0.21}}}))

    def test_a_file_that_is_no_rules_is_named(self):
        for text, said in (("groups: [", "error converting YAML"), ("rules: []\n", "has no list called groups")):
            with tempfile.TemporaryDirectory() as folder:
                chart = pathlib.Path(folder) / "millrace"
                shutil.copytree(CHART, chart)
                (chart / "rules" / "mine.yaml").write_text(text)
                for helm in HELMS:
                    self.assertRegex(refusal(helm, {}, apis=APIS, chart=chart), "rules/mine.yaml: .*" + said)


class Config(unittest.TestCase):
    def test_the_binary_takes_every_configuration(self):
        jobs = [(path, apis) for path in CI_FILES for apis in ((), APIS)]
        loaded = 0
        for (path, _), objects in zip(jobs, parallel(lambda j: render("helm4", j[0], apis=j[1]), jobs)):
            device = "backend: cuda" in path.read_text()
            for where, result in loads(objects):
                with self.subTest(file=path.name, where=where):
                    # A CPU build plans no devices; the model's check is a plan on the CPU.
                    if device and not where.endswith("check-model"):
                        self.assertNotEqual(result.returncode, 2, result.stderr)
                    else:
                        self.assertEqual(result.returncode, 0, result.stderr)
                        self.assertIn("serving", result.stdout)
                    loaded += 1
        self.assertGreater(loaded, 30)

    def test_the_model_check_finds_a_truncated_file(self):
        objects = render("helm4", CHART / "ci" / "cpu-dev-values.yaml")
        check = next(c for _, t in pod_templates(objects) for c in t["spec"].get("initContainers", []))
        config = support.indexed(objects)["ConfigMap/demo-millrace-gateway"]["data"]["standalone.yaml"]
        with tempfile.TemporaryDirectory() as folder:
            model = pathlib.Path(folder) / "model"
            shutil.copytree(SAMPLE, model)
            file = pathlib.Path(folder) / "standalone.yaml"
            file.write_text(config)
            arguments = [BIN, *[a.replace("/etc/millrace/config", folder) for a in check["args"]], "--set", f"model.path={model}"]
            self.assertEqual(subprocess.run(arguments, capture_output=True).returncode, 0)
            with open(model / "model.safetensors", "r+b") as weights:
                weights.truncate(weights.seek(0, 2) - 1000)
            result = subprocess.run(arguments, capture_output=True, text=True)
            self.assertEqual(result.returncode, 1)
            self.assertIn("model.safetensors", result.stderr)


class Properties(unittest.TestCase):
    def check(self, jobs: list[tuple[str, str, dict]]):
        """(helm, what, values) each render; the objects are valid and the binary takes them."""
        kubes = ("1.31", "1.34", "1.37")

        def one(numbered):
            number, (helm, what, values) = numbered
            kube = kubes[number % 3] if "subPath" not in what else "1.34"
            try:
                objects = render(helm, values, kube=kube, apis=APIS if number % 2 else ())
            except support.Refused as e:
                return [f"{what}: {e}"]
            found = faults(objects, kube)
            found += [f"{where}: {r.stderr}" for where, r in loads(objects) if r.returncode not in (0, 1)]
            return [f"{what}: {f}" for f in found]

        wrong = [f for found in parallel(one, list(enumerate(jobs))) for f in found]
        self.assertEqual(wrong, [])

    def test_every_accepted_value_renders_valid_objects(self):
        coupled = {tuple(p.split(".")) for p in CONTEXTS}
        known = {path for path, _ in space.leaves()}
        self.assertEqual(coupled - known, set(), "coupled_values.py names values that are gone")
        jobs, samples = [], 0
        for number, group in enumerate(space.mixtures(7, coupled)):
            tree: dict = {}
            for path, value in group.items():
                space.put(tree, path, value)
            samples += len(group)
            jobs.append((HELMS[number % 2], space.described(group), tree))
        for path, schema in space.leaves():
            if path not in coupled:
                continue
            for value in space.good(path, schema):
                around = CONTEXTS[".".join(path)](value)
                if around is None:  # a rule refuses this sample whatever the others are
                    continue
                tree = copy.deepcopy(around)
                space.put(tree, path, value)
                samples += 1
                jobs.append((HELMS[samples % 2], space.described({path: value}), tree))
        print(f"{samples} samples of {len(known)} values in {len(jobs)} renders")
        self.check(jobs)

    @staticmethod
    def without_sums(objects: list[dict]) -> list[dict]:
        """Configurations as what they load as; without checksums, which follow every text."""
        objects = copy.deepcopy(objects)
        for o in objects:
            if o["kind"] == "ConfigMap":
                o["data"] = {f: support.load_yaml(text) if f.endswith(".yaml") else text for f, text in o.get("data", {}).items()}
        for _, template in pod_templates(objects):
            sums = template["metadata"].get("annotations", {})
            template["metadata"]["annotations"] = {k: v for k, v in sums.items() if not k.startswith("checksum/")}
        return objects

    @seed(generated.SEED)
    @settings(max_examples=25, deadline=None, database=None, suppress_health_check=list(HealthCheck), print_blob=False,
              phases=[Phase.generate])  # making an example smaller would take minutes of renders
    @given(generated.trees())
    def test_generated_texts_come_out_as_they_went_in(self, tree):
        """The same under both Helms and valid; and what comes out of harmless texts, with the true ones in their places, is what comes
        out of the true ones: each is a text still, and the same."""
        harmless, meaning = generated.plain(tree)
        three, four, base = parallel(lambda job: render(job[0], job[1], apis=APIS), [("helm3", tree), ("helm4", tree), ("helm4", harmless)])
        self.assertEqual(support.indexed(three), support.indexed(four))
        self.assertEqual(faults(four, "1.34"), [])
        self.assertEqual([r.stderr for _, r in loads(four) if r.returncode not in (0, 1)], [])
        wanted = [generated.with_meaning(o, meaning) for o in self.without_sums(base)]
        self.assertEqual(support.indexed(self.without_sums(four)), support.indexed(wanted))
        Properties.texts += len(meaning)

    texts = 0

    @classmethod
    def tearDownClass(cls):
        if cls.texts:
            print(f"{cls.texts} generated texts, seed {generated.SEED} (MILLRACE_SEED)")

    def test_every_bad_value_is_refused(self):
        schema = jsonschema_rs.Draft7Validator(space.SCHEMA)
        rounds: list[list] = []
        for path, plain in space.leaves():
            for number, value in enumerate(space.bad(path, plain)):
                tree: dict = {}
                space.put(tree, path, value)
                self.assertFalse(schema.is_valid(tree), (path, value))
                while len(rounds) <= number:
                    rounds.append([])
                rounds[number].append((path, value))
        # Helm names all that is wrong at once.
        jobs = [(helm, bad) for helm in HELMS for bad in rounds]

        def said(job):
            tree: dict = {}
            for path, value in job[1]:
                space.put(tree, path, value)
            return refusal(job[0], tree)

        for (helm, bad), message in zip(jobs, parallel(said, jobs)):
            named = set(re.findall(r"^ *- (?:at '/?([^']*)'|([\w.-]+)):", message, re.M))
            named = {(a.replace("/", ".") if a else b) for a, b in named}
            for path, value in bad:
                if value is None:  # null takes a value's default
                    continue
                name = ".".join(path)
                self.assertTrue(any(n == name or n.startswith(name + ".") for n in named), f"{helm} says nothing about {name}={value!r}")

    def test_unknown_keys_are_refused_in_every_map(self):
        for helm in HELMS:
            tree: dict = {}
            paths = list(space.maps())
            for path in paths:
                space.put(tree, path + ("surplus",), 1)
            message = refusal(helm, tree)
            for path in paths:
                where = "/" + "/".join(path) if helm == "helm4" and path else ".".join(path) or "(root)"
                wanted = f"at '{where if path else ''}'" if helm == "helm4" else f"- {where}: "
                self.assertIn(wanted, message, helm)

    def test_fields_that_the_chart_decides_are_refused(self):
        for section, name, value in (("gateway", "port", 1), ("cell", "hosts", []), ("grid", "lanes", 2), ("model", "path", "/x")):
            self.assertIn(name, refusal("helm4", {"config": {section: {name: value}}}))


if __name__ == "__main__":
    unittest.main(verbosity=2)
