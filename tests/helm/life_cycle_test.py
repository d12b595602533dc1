#!/usr/bin/env python3
"""The life of a release under real Helm 3 and 4, with its pods running: install, test, an upgrade that rolls gateways and cells,
failed upgrades, rollback, a container killed, a pod lost, uninstall.

The cluster is a stand-in (stand_in/): an API server with what Helm asks of one, controllers that make and roll pods by
Kubernetes's rules, and a node that runs each pod as a container of the real image with the rendered files, probes and signals.
What that does not prove: admission and defaults, scheduling and quotas, the real controllers' timing, volumes, devices,
NetworkPolicies, images' registries.
"""

import base64
import contextlib
import json
import os
import pathlib
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import unittest
import urllib.request

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import support  # noqa: E402  (goes on in the venv)
from support import CHART, HELMS, ROOT, VENV  # noqa: E402

sys.path[:0] = [str(ROOT / "tests" / "support"), str(ROOT / "scripts")]
from container import may_run  # noqa: E402
from stand_in.api_server import VERSION, ApiServer  # noqa: E402
from stand_in.controllers import Controllers, ending, ready  # noqa: E402
from stand_in.node import Node, own_network  # noqa: E402

BIN = os.environ.get("MILLRACE_BIN", str(ROOT / "build/cpu/bin/millrace"))
PROMPT = {"model": "sample", "prompt": "It is a truth universally", "max_tokens": 12, "temperature": 0}


def ask(url: str, limit_s: float = 30) -> str:
    request = urllib.request.Request(url + "/v1/completions", json.dumps(PROMPT).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=limit_s) as response:
        return json.load(response)["choices"][0]["text"]


class Clients(threading.Thread):
    """Asks all the time; keeps what went wrong."""

    def __init__(self, url: str, expected: str):
        super().__init__(daemon=True)
        self.url, self.expected = url, expected
        self.answers, self.wrong = 0, []
        self.stopping = False

    def run(self):
        while not self.stopping:
            try:
                text = ask(self.url)
                self.answers += 1
                if text != self.expected:
                    self.wrong.append(f"another text: {text!r}")
            except OSError as e:
                self.wrong.append(f"{time.strftime('%H:%M:%S')} {e!r} {getattr(e, 'read', lambda: b'')()[:300]!r}")
            time.sleep(0.05)

    def stop(self):
        self.stopping = True
        self.join()


class Cluster:
    def __init__(self, folder: pathlib.Path, image: pathlib.Path, config: dict, apis=()):
        self.folder = folder
        self.api = ApiServer(apis, lambda o: support.schema_errors(o, VERSION))
        self.controllers = Controllers(self.api.store)
        environment = dict(v.split("=", 1) for v in config["Env"])
        (folder / "pods").mkdir()
        self.node = Node(self.api.store, image, folder / "pods", config["Entrypoint"], environment)
        self.api.handler.log_of = staticmethod(self.node.log)
        (folder / "kubeconfig").write_text(json.dumps(self.api.kubeconfig()))

    def close(self):
        self.node.close()
        self.controllers.close()
        self.api.close()

    def secret(self, name: str):
        with self.api.store.lock:
            self.api.store.create("secrets", "serving", {
                "apiVersion": "v1", "kind": "Secret", "metadata": {"name": name},
                "data": {"secret": base64.b64encode(secrets.token_hex(32).encode()).decode()}})

    def helm(self, helm: str, *arguments: str, limit_s: float = 150) -> subprocess.CompletedProcess:
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.folder), "KUBECONFIG": str(self.folder / "kubeconfig")}
        return subprocess.run([VENV / "bin" / helm, *arguments, "--namespace", "serving"], capture_output=True, text=True,
                              env=environment, timeout=limit_s)

    def names(self, plural: str) -> list[str]:
        with self.api.store.lock:
            return sorted(o["metadata"]["name"] for o in self.api.store.of_kind(plural))

    def pods(self, component: str) -> dict[str, dict]:
        with self.api.store.lock:
            return {p["metadata"]["name"]: p for p in self.api.store.of_kind("pods")
                    if p["metadata"]["labels"].get("app.kubernetes.io/component") == component}

    def address(self, service: str) -> str:
        with self.api.store.lock:
            return self.api.store.find("services", "serving", service)["spec"]["clusterIP"]

    def uids(self, component: str) -> set[str]:
        return {p["metadata"]["uid"] for p in self.pods(component).values() if not ending(p)}

    def kill(self, pod: dict):
        """SIGKILL to all processes of its container, as the kernel does that is out of memory."""
        self.node.pods[pod["metadata"]["uid"]].container.signal(9)

    def logs(self) -> str:
        text = ""
        for path in sorted((self.folder / "pods").glob("*/log")):
            text += f"--- {path.parent.name}\n{path.read_text(errors='replace')[-1500:]}\n"
        return text + f"node: {self.node.errors}\ncontrollers: {self.controllers.errors}\n"


class LifeCycle(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        if reason := may_run():
            print(f"skipped=1: {reason}")
            sys.exit(support.SKIPPED)
        cls.folder = pathlib.Path(tempfile.mkdtemp(prefix="millrace-cluster-"))
        cls.folder.chmod(0o755)
        cls.image = cls.folder / "image"
        subprocess.run([str(ROOT / "scripts/image_root.py"), "--binary", BIN, "--out", str(cls.image)], check=True,
                       stdout=subprocess.DEVNULL)
        # The last stage of the Dockerfile says how the image starts.
        stage = (ROOT / "Dockerfile").read_text().partition("AS cpu\n")[2]
        cls.config = {"Env": re.search(r"^ENV (.*)$", stage, re.M).group(1).split(),
                      "Entrypoint": json.loads(re.search(r"^ENTRYPOINT (.*)$", stage, re.M).group(1))}
        own_network()

    @classmethod
    def tearDownClass(cls):
        shutil.rmtree(cls.folder, ignore_errors=True)

    def setUp(self):
        folder = self.folder / self.id().rpartition(".")[2]
        folder.mkdir()
        self.cluster = Cluster(folder, self.image, self.config)
        self.addCleanup(self.cluster.close)

    def helm(self, *arguments: str, fails: bool = False) -> str:
        result = self.cluster.helm(self.version, *arguments)
        text = f"helm {' '.join(arguments)}: {result.stdout}\n{result.stderr}\n"
        self.assertEqual(result.returncode != 0, fails, text + self.cluster.logs())
        return text

    def wait_for(self, what: str, condition, limit_s: float = 90):
        deadline = time.monotonic() + limit_s
        while not condition():
            if time.monotonic() > deadline:
                self.fail(f"{what}: not within {limit_s} s\n{self.cluster.logs()}")
            time.sleep(0.05)

    def all_ready(self, component: str, count: int) -> bool:
        return sum(map(ready, self.cluster.pods(component).values())) == count

    @contextlib.contextmanager
    def clients(self, url: str, expected: str):
        """While they ask, nobody gets a wrong answer or none."""
        clients = Clients(url, expected)
        clients.start()
        try:
            yield
        finally:
            clients.stop()
        self.assertEqual(clients.wrong, [], self.cluster.logs())
        self.assertGreater(clients.answers, 3)

    def crashing(self, component: str) -> list[dict]:
        """Pods that have been started three times, to no avail."""
        return [p for p in self.cluster.pods(component).values() if not ending(p) and not ready(p)
                and p["status"].get("containerStatuses", [{}])[0].get("restartCount", 0) > 1]

    def test_helm3(self):
        self.version = HELMS[0]
        self.life()

    def test_helm4(self):
        self.version = HELMS[1]
        self.life()

    def life(self):
        before = {plural: self.cluster.names(plural) for plural in ("secrets", "pods", "services", "configmaps")}
        self.cluster.secret("millrace-cell")
        values = ["--values", str(CHART / "ci" / "cpu-cluster-values.yaml")]
        self.helm("install", "demo", str(CHART), *values, "--create-namespace", "--wait", "--timeout", "120s")
        self.assertTrue(self.all_ready("gateway", 2) and self.all_ready("cell", 2), self.cluster.logs())
        logs = ["--logs"] if self.version == "helm4" else []  # Helm 3 looks for them when it has deleted the pod
        self.assertIn("Succeeded", self.helm("test", "demo", *logs))
        url = f"http://{self.cluster.address('demo-millrace')}:80"
        expected = ask(url)
        self.assertTrue(expected)

        # An upgrade that changes what gateways and cells read rolls all of them, and nobody notices.
        old = self.cluster.uids("gateway") | self.cluster.uids("cell")
        with self.clients(url, expected):
            self.helm("upgrade", "demo", str(CHART), *values, "--set", "config.cache.max_sequences=12", "--wait", "--timeout", "120s")
            self.wait_for("the roll-out", lambda: self.all_ready("gateway", 2) and self.all_ready("cell", 2)
                          and not old & (self.cluster.uids("gateway") | self.cluster.uids("cell")))
        self.assertEqual(len(self.cluster.uids("gateway")), 2)
        self.assertEqual(len(self.cluster.uids("cell")), 2)

        # One whose image is not there fails; who serves, serves on; the rollback is at once.
        with self.clients(url, expected):
            self.helm("upgrade", "demo", str(CHART), *values, "--set", "image.tag=missing", "--wait", "--timeout", "5s", fails=True)
            self.helm("rollback", "demo", "2", "--wait", "--timeout", "120s")

        # So does one whose pods crash: the model is not where the values say. A gateway and a cell say so, again and again, and the
        # others stay.
        with self.clients(url, expected):
            self.helm("upgrade", "demo", str(CHART), *values, "--set", "model.path=/usr/share/millrace/models/none", "--wait", "--timeout",
                      "8s", fails=True)
            for component in ("gateway", "cell"):
                self.wait_for(f"a {component} crashes again and again", lambda: self.crashing(component))
                self.assertIn("/usr/share/millrace/models/none", self.cluster.node.log(self.crashing(component)[0]))
            self.assertTrue(self.all_ready("gateway", 2) and self.all_ready("cell", 1), self.cluster.logs())
            self.helm("rollback", "demo", "2", "--wait", "--timeout", "120s")
            self.wait_for("the rollback", lambda: self.all_ready("gateway", 2) and self.all_ready("cell", 2))

        # A container that is killed starts again in its pod.
        for component in ("cell", "gateway"):
            pod = min(self.cluster.pods(component).items())[1]
            uids = self.cluster.uids(component)
            restarts = pod["status"]["containerStatuses"][0]["restartCount"]
            self.cluster.kill(pod)
            self.wait_for(f"the {component} starts again", lambda: self.cluster.pods(component)[pod["metadata"]["name"]]["status"][
                "containerStatuses"][0]["restartCount"] == restarts + 1)
            self.wait_for("all are ready again", lambda: self.all_ready("cell", 2) and self.all_ready("gateway", 2))
            self.assertEqual(self.cluster.uids(component), uids)
            self.assertEqual(ask(url), expected)

        # A cell's pod is deleted: another comes, and the service with it.
        cell = min(self.cluster.pods("cell").items())[1]
        with self.cluster.api.store.lock:
            self.cluster.api.store.delete("pods", cell)
        self.wait_for("a new cell", lambda: cell["metadata"]["uid"] not in {
            p["metadata"]["uid"] for p in self.cluster.pods("cell").values()} and self.all_ready("cell", 2))
        self.wait_for("gateways are ready again", lambda: self.all_ready("gateway", 2))
        self.assertEqual(ask(url), expected)

        self.helm("uninstall", "demo", "--wait", "--timeout", "60s")
        self.wait_for("nothing left", lambda: not self.cluster.names("pods"), 60)
        before["secrets"].append("millrace-cell")
        self.assertEqual({plural: self.cluster.names(plural) for plural in before}, before)
        with self.cluster.api.store.lock:
            left = {p for (p, _, _) in self.cluster.api.store.objects} - {"namespaces", "secrets"}
        self.assertEqual(left, set())
        self.assertEqual(self.cluster.controllers.errors + self.cluster.node.errors, [], self.cluster.logs())


if __name__ == "__main__":
    unittest.main(verbosity=2)
