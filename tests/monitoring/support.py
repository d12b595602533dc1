"""Debian's Prometheus for tests, as scripts/test-prometheus unpacks it, and a gateway under load for it to scrape. Standard library only."""

import contextlib
import json
import os
import pathlib
import socket
import subprocess
import sys
import textwrap
import threading
import urllib.error
import urllib.parse
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
TOOLS = ROOT / "build" / "prometheus"
PROMTOOL, PROMETHEUS = TOOLS / "promtool", TOOLS / "prometheus"
HELM = ROOT / "build" / "helm-venv" / "bin" / "helm4"
CHART = ROOT / "helm" / "millrace"
RULES = CHART / "rules" / "millrace.yaml"
SKIPPED = 77

sys.path[:0] = [str(ROOT / "monitoring"), str(ROOT / "tests" / "e2e")]


def need_prometheus():
    if not (PROMTOOL.exists() and PROMETHEUS.exists()):
        print("SKIPPED: no build/prometheus; run scripts/test-prometheus where Debian's packages can be reached")
        sys.exit(SKIPPED)


def chart_rules(folder: pathlib.Path, **values) -> pathlib.Path | None:
    """The rules as the chart makes them of its release "demo" and values of `monitoring`, as a file for Prometheus; None without Helm."""
    if not HELM.exists():
        return None
    path = folder / "chart.yaml"
    path.write_text(json.dumps({"monitoring": {"dashboards": {"enabled": False}, "rules": {"enabled": True}} | values}))
    text = helm_template("--show-only", "templates/monitoring.yaml", "--values", str(path))
    path.write_text(textwrap.dedent(text.partition("\nspec:\n")[2]))
    return path


def helm_template(*arguments: str) -> str:
    return subprocess.run([HELM, "template", "demo", CHART, "--namespace", "serving", *arguments], capture_output=True, text=True,
                          check=True, env={"PATH": os.environ["PATH"], "HOME": "/nonexistent"}).stdout


class Prometheus:
    """A server that scrapes one gateway every second, with the labels that it would have on Kubernetes."""

    def __init__(self, folder: pathlib.Path, gateway_port: int, rules: pathlib.Path):
        target = {"targets": [f"127.0.0.1:{gateway_port}"],
                  "labels": {"cluster": "test", "namespace": "serving", "pod": "demo-millrace-gateway-6d5f8c7b9-x2x4z"}}
        config = {"global": {"scrape_interval": "1s", "evaluation_interval": "1s"}, "rule_files": [str(rules)],
                  "scrape_configs": [{"job_name": "demo-millrace", "static_configs": [target]}]}
        (folder / "prometheus.yml").write_text(json.dumps(config))
        with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as free:
            self.port = free.getsockname()[1]
        self.log = folder / "prometheus.log"
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                [PROMETHEUS, f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data", "--log.level=warn",
                 f"--web.listen-address=127.0.0.1:{self.port}"], stdout=log, stderr=log)

    def stop(self):
        self.process.terminate()
        self.process.wait()

    def ask(self, path: str, **parameters) -> list[dict]:
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=60) as answer:
                data = json.load(answer)["data"]
        except urllib.error.HTTPError as e:
            raise AssertionError(f"{parameters}: {e.read().decode()}") from None
        return data["result"] if isinstance(data, dict) and "result" in data else data

    def query(self, expr: str, **parameters) -> list[dict]:
        return self.ask("query", query=expr, **parameters)

    def range(self, expr: str, start: float, end: float, step: float) -> list[dict]:
        return self.ask("query_range", query=expr, start=start, end=end, step=step)

    def ready(self) -> bool:
        if self.process.poll() is not None:
            raise AssertionError(self.log.read_text())
        with contextlib.suppress(urllib.error.URLError):
            urllib.request.urlopen(f"http://127.0.0.1:{self.port}/-/ready", timeout=10).close()
            return bool(self.query("millrace_build_info"))
        return False


def panel_expression(expr: str, window: str = "1m") -> str:
    """With Grafana's variables replaced: all of everything."""
    for name, value in (("$__rate_interval", window), ("$cluster", ".*"), ("$namespace", ".*"), ("$job", ".*millrace.*"), ("$cell", ".*")):
        expr = expr.replace(name, value)
    return expr


class Load(threading.Thread):
    """Requests of several kinds until stop(): answers, clients that leave, and bad ones."""

    def __init__(self, binary: str, url: str, concurrency: int = 6, prompt_tokens: int = 48, answer_tokens: int = 24):
        super().__init__(daemon=True)
        self.command = [binary, "bench", "--url", url, "--concurrency", str(concurrency), "--num-prompts",
                        str(2 * concurrency), "--input-len", str(prompt_tokens),
                        "--output-len", str(answer_tokens), "--token-range", "1", "4000", "--warmup", "0", "--allow-failures"]
        self.url = url
        self.over = threading.Event()

    def run(self):
        while not self.over.is_set():
            with contextlib.suppress(OSError):
                self.ask({"max_tokens": "many"}).close()
            with contextlib.suppress(OSError), self.ask({"max_tokens": 400, "stream": True, "ignore_eos": True}) as answer:
                answer.readline()  # and leaves
            bench = subprocess.Popen(self.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            while bench.poll() is None and not self.over.wait(0.1):
                pass
            bench.terminate()
            bench.wait()

    def ask(self, body: dict):
        request = urllib.request.Request(f"{self.url}/v1/completions", json.dumps({"model": "sample", "prompt": "Once", **body}).encode(),
                                         {"Content-Type": "application/json"})
        return urllib.request.urlopen(request, timeout=30)

    def stop(self):
        self.over.set()
        self.join()
