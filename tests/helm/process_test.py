#!/usr/bin/env python3
"""Pods of the rendered chart as processes of this machine: their arguments, environment, files, probes and signals.

A pod's containers run as the chart's user, with the files that its volumes would hold: ConfigMaps, and Secrets with the owner,
group and mode that a kubelet gives them. What stands in for the cluster is small, and listed in Pod: paths of mounts, addresses for
names, the sample model. Without root the processes run as who starts this, and secrets are theirs.
"""

import contextlib
import http.client
import os
import pathlib
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import unittest
import urllib.request

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import support  # noqa: E402  (goes on in the venv)
from support import CHART, ROOT, render  # noqa: E402

import yaml  # noqa: E402

sys.path.insert(0, str(ROOT / "tests" / "e2e"))
from multi_node_test import (ADDRESS, LEADER, OTHER, SHARED_MEMORY, command_line, make_namespaces, network_of,  # noqa: E402
                             processes_in, remove_namespaces)

BIN = os.environ.get("MILLRACE_BIN", str(ROOT / "build/cpu/bin/millrace"))
NETWORK = f"127.{os.getpid() >> 8 & 127 | 64}.{os.getpid() & 255}"  # of this run alone


def wait_for(what: str, condition, limit_s: float):
    deadline = time.monotonic() + limit_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {limit_s} s")
        time.sleep(0.05)
    return value


class Release:
    """The rendered objects, and addresses for the names in them. `hosts` stands in for DNS: it is /etc/hosts to the pods."""

    def __init__(self, folder: pathlib.Path, values: dict, secret_values: dict[str, dict[str, str]]):
        self.folder = folder
        self.objects = support.indexed(render("helm4", values))
        self.secret_values = secret_values
        self.addresses: dict[str, str] = {}
        self.hosts = folder / "hosts"
        self.publish([])

    def gateways_name(self) -> str:
        """The one name that cells know all gateways by."""
        gateways = yaml.safe_load(self.objects["ConfigMap/demo-millrace-cell"]["data"]["cell.yaml"])["cell"]["gateways"]
        assert len(gateways) == 1, gateways
        return gateways[0].rpartition(":")[0]

    def publish(self, gateways: list["Pod"]):
        """The headless Service's endpoints. In place, since the file is mounted."""
        self.hosts.write_text("127.0.0.1 localhost\n" + "".join(f"{g.host} {self.gateways_name()}\n" for g in gateways))
        self.hosts.chmod(0o644)

    def address(self, name: str) -> str:
        return self.addresses.setdefault(name, f"{NETWORK}.{len(self.addresses) + 1}")


class Pod:
    """One pod of a StatefulSet or Deployment: started with start(), ended as a kubelet would with end()."""

    def __init__(self, release: Release, kind: str, ordinal: int = 0):
        self.release = release
        self.name = f"{kind.partition('/')[2]}-{ordinal}"
        self.spec = release.objects[kind]["spec"]["template"]["spec"]
        self.container = self.spec["containers"][0]
        self.folder = release.folder / self.name
        self.host = release.address(self.name)
        self.log = release.folder / f"{self.name}.log"
        self.tmp = release.folder / f"t{len(release.addresses)}"  # short: sockets lie in it
        self.tmp.mkdir(exist_ok=True)
        self.tmp.chmod(0o1777)
        self.process: subprocess.Popen | None = None

    def own(self, path: pathlib.Path, mode: int):
        if os.geteuid() == 0:
            os.chown(path, 0, self.spec["securityContext"]["fsGroup"])
        path.chmod(mode if os.geteuid() == 0 else 0o600)

    def mount(self):
        volumes = {v["name"]: v for v in self.spec["volumes"]}
        for mount in self.container["volumeMounts"]:
            source = volumes[mount["name"]]
            target = self.folder / mount["mountPath"].strip("/")
            target.mkdir(parents=True, exist_ok=True)
            if "configMap" in source:
                data = self.release.objects[f"ConfigMap/{source['configMap']['name']}"]["data"]
                for name, text in data.items():
                    (target / name).write_text(text.replace("/etc/millrace/", f"{self.folder}/etc/millrace/"))
            elif "secret" in source:
                for item in source["secret"]["items"]:
                    path = target / item["path"]
                    path.write_text(self.release.secret_values[source["secret"]["secretName"]][item["key"]])
                    self.own(path, source["secret"]["defaultMode"])

    def run(self, container: dict, more: list[str]) -> list[str]:
        arguments = [a.replace("/etc/millrace/", f"{self.folder}/etc/millrace/") for a in container["args"]]
        return [*self.inside(), BIN, *arguments, *more]

    def inside(self) -> list[str]:
        """What a command begins with: a mount namespace with the release's names, and the chart's user."""
        return [*self.namespaces(), "sh", "-ec", f'mount --bind "$0" /etc/hosts; exec {self.as_user()} "$@"', str(self.release.hosts)]

    @staticmethod
    def namespaces() -> list[str]:
        return ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user", "--mount"]

    def as_user(self) -> str:
        user = self.spec["securityContext"]
        return ("" if os.geteuid() != 0 else
                f"setpriv --reuid={user['runAsUser']} --regid={user['runAsGroup']} --groups={user['fsGroup']} --inh-caps=-all "
                "--bounding-set=-all --no-new-privs --")

    def start(self):
        self.mount()
        environment = self.environment()
        for variable in self.container.get("env", []):
            environment[variable["name"]] = variable.get("value", self.name)  # the one reference is to the pod's name
        model = ["--set", f"model.path={ROOT / 'models' / 'sample'}"]
        for init in self.spec.get("initContainers", []):
            subprocess.run(self.run(init, model), check=True, capture_output=True, env=environment)
        fields = {"cell": ["cell.health_host"], "node-agent": []}.get(self.container["args"][0], ["gateway.host", "gateway.cell_host"])
        addresses = [word for field in fields for word in ("--set", f"{field}={self.host}")]
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(self.run(self.container, model + addresses), stdout=log, stderr=log,
                                            env=environment, start_new_session=True)
        return self

    def end(self) -> int:
        """The preStop hook, if there is one, then SIGTERM; both within the grace period."""
        deadline = time.monotonic() + self.spec["terminationGracePeriodSeconds"]
        hook = self.container.get("lifecycle", {}).get("preStop")
        if hook:
            command = [a.replace("127.0.0.1", self.host) for a in hook["exec"]["command"][1:]]
            result = subprocess.run([*self.inside(), BIN, *command], capture_output=True, text=True, env=self.environment(),
                                    timeout=deadline - time.monotonic())
            assert result.returncode == 0, result.stderr
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(deadline - time.monotonic())

    def environment(self) -> dict[str, str]:
        """Of a container: no home, as the user is in no passwd."""
        return {"PATH": os.environ["PATH"], "TMPDIR": str(self.tmp)}

    def kill(self):
        if self.process and self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()
            self.process.wait()

    def port(self, name: str) -> int:
        return next(p["containerPort"] for p in self.container["ports"] if p["name"] == name)

    def get(self, path: str, limit_s: float = 2, port: str = "http") -> int:
        connection = http.client.HTTPConnection(self.host, self.port(port), timeout=limit_s)
        try:
            connection.request("GET", path)
            return connection.getresponse().status
        except OSError:
            return 0
        finally:
            connection.close()

    def probe(self, kind: str) -> bool:
        probe = self.container[kind]
        assert self.process.poll() is None, self.log.read_text()[-3000:]
        if "tcpSocket" in probe:
            return self.connects(self.port(probe["tcpSocket"]["port"]), probe["timeoutSeconds"])
        return 200 <= self.get(probe["httpGet"]["path"], probe["timeoutSeconds"], probe["httpGet"]["port"]) < 400

    def connects(self, port: int, limit_s: float) -> bool:
        try:
            socket.create_connection((self.host, port), limit_s).close()
            return True
        except OSError:
            return False

    def wait(self, kind: str, limit_s: float):
        try:
            wait_for(f"{self.name}: {kind}", lambda: self.probe(kind), limit_s)
        except AssertionError as e:
            raise AssertionError(f"{e}\n{self.log.read_text()[-3000:]}") from None


class NodePod(Pod):
    """A pod on a node: a network namespace, with a host name and a /dev/shm of its own. Names are in its /etc/hosts as they
    would be in DNS."""

    def __init__(self, release: Release, kind: str, node: str):
        super().__init__(release, kind)
        self.node = node
        self.host = ADDRESS[node]

    def inside(self) -> list[str]:
        script = f'mount --bind "$1" /dev/shm; hostname "$0"; shift; exec {self.as_user()} "$@"'
        return ["ip", "netns", "exec", self.node, "unshare", "--uts", "sh", "-ec", script, self.name, str(SHARED_MEMORY[self.node])]

    def get(self, path: str, limit_s: float = 2, port: str = "http") -> int:
        with network_of(self.node):
            return super().get(path, limit_s, port)

    def connects(self, port: int, limit_s: float) -> bool:
        with network_of(self.node):
            return super().connects(port, limit_s)


class MultiNode(unittest.TestCase):
    def test_a_cell_over_two_pods(self):
        """The StatefulSets of cpu-multi-node: the leader's mpirun starts ranks in the agent's pod, as the chart's user and without
        any capability, and again after that pod was deleted."""
        if os.geteuid() != 0:
            self.skipTest("network namespaces need root")
        folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
        folder.chmod(0o755)
        memory = self.enterContext(tempfile.TemporaryDirectory(dir="/dev/shm"))
        os.chmod(memory, 0o755)
        values = yaml.safe_load((CHART / "ci" / "cpu-multi-node-values.yaml").read_text())
        release = Release(folder, values, {"millrace-node-agent": {"secret": secrets.token_hex(32)}})
        places = {"Deployment/demo-millrace-gateway": LEADER, "StatefulSet/demo-millrace-cell-0": LEADER,
                  "StatefulSet/demo-millrace-cell-0-node": OTHER}
        release.addresses = {f"{kind.partition('/')[2]}-0": ADDRESS[node] for kind, node in places.items()}
        hosts = "127.0.0.1 localhost\n" + "".join(f"{address} {name}\n" for name, address in release.addresses.items())
        hosts += f"{ADDRESS[LEADER]} {release.gateways_name()}\n"
        for node in (LEADER, OTHER):
            names = pathlib.Path("/etc/netns") / node
            names.mkdir(parents=True)
            self.addCleanup(shutil.rmtree, names)
            (names / "hosts").write_text(hosts)
            SHARED_MEMORY[node] = pathlib.Path(memory) / node
            SHARED_MEMORY[node].mkdir(mode=0o777)
            SHARED_MEMORY[node].chmod(0o777)
        self.addCleanup(remove_namespaces)
        try:
            make_namespaces()
            with network_of(OTHER):
                pass
        except (OSError, subprocess.CalledProcessError) as e:
            self.skipTest(f"network namespaces are not permitted here: {e} {getattr(e, 'stderr', '')}")
        pods = {kind: NodePod(release, kind, node) for kind, node in places.items()}
        for pod in pods.values():
            self.addCleanup(pod.kill)
            pod.start()
        gateway, leader, agent = pods.values()
        agent.wait("readinessProbe", 30)
        for probe in ("startupProbe", "readinessProbe"):
            leader.wait(probe, 60)
        gateway.wait("readinessProbe", 60)
        ranks = [p for p in processes_in(OTHER) if command_line(p)[1:2] == ["worker"]]
        self.assertEqual(len(ranks), 2)
        for rank in ranks:
            status = pathlib.Path(f"/proc/{rank}/status").read_text()
            self.assertRegex(status, r"Uid:\t10001\t10001\t10001\t10001\n")
            self.assertRegex(status, r"CapEff:\t0+\nCapBnd:\t0+\n")
        # helm test from a pod beside the gateway.
        test = release.objects["Pod/demo-millrace-test"]["spec"]["containers"][0]["args"]
        url = [f"http://{gateway.host}:8000" if a.startswith("http://") else a for a in test]
        result = subprocess.run([*gateway.inside(), BIN, *url], capture_output=True, text=True, timeout=120)
        self.assertEqual(result.returncode, 0, result.stderr)

        self.assertEqual(agent.end(), 0)
        for pod in (gateway, leader):
            wait_for("not ready", lambda: not pod.probe("readinessProbe"), 30)
        self.assertTrue(leader.probe("livenessProbe"))
        self.assertNotIn("handshake", agent.log.read_text())  # probes are no strangers
        agent.start()
        gateway.wait("readinessProbe", 90)
        for pod in (leader, agent, gateway):
            self.assertEqual(pod.end(), 0)
        for node in (LEADER, OTHER):
            self.assertEqual(list(SHARED_MEMORY[node].iterdir()), [])


class Processes(unittest.TestCase):
    def setUp(self):
        self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
        self.folder.chmod(0o755)
        self.pods: list[Pod] = []
        if os.geteuid() == 0:
            reachable = all(os.stat(p).st_mode & 0o001 for p in pathlib.Path(BIN).resolve().parents)
            if not reachable:
                self.skipTest(f"{BIN} is in a folder that the chart's user may not enter")
        mounts = Pod.namespaces() + ["true"]
        if subprocess.run(mounts, capture_output=True).returncode != 0:
            self.skipTest(f"not permitted here: {' '.join(mounts)}")

    def tearDown(self):
        for pod in self.pods:
            pod.kill()

    def pod(self, *arguments) -> Pod:
        self.pods.append(Pod(*arguments))
        return self.pods[-1].start()

    @staticmethod
    def metrics(gateway: Pod) -> bytes:
        with urllib.request.urlopen(f"http://{gateway.host}:{gateway.port('http')}/metrics", timeout=5) as response:
            return response.read()

    def helm_test(self, release: Release, gateway: Pod):
        container = release.objects["Pod/demo-millrace-test"]["spec"]["containers"][0]
        url = container["args"].index("--url") + 1
        self.assertEqual(container["args"][url], "http://demo-millrace.serving.svc.cluster.local:80")
        arguments = [BIN, *container["args"]]
        arguments[url + 1] = f"http://{gateway.host}:{gateway.port('http')}"
        result = subprocess.run(arguments, capture_output=True, text=True, timeout=120)
        self.assertEqual(result.returncode, 0, result.stderr)

    def test_standalone_comes_up_answers_and_drains(self):
        values = yaml.safe_load((CHART / "ci" / "cpu-dev-values.yaml").read_text())
        release = Release(self.folder, values, {})
        pod = self.pod(release, "Deployment/demo-millrace-gateway")
        budget = pod.container["startupProbe"]
        pod.wait("startupProbe", budget["periodSeconds"] * budget["failureThreshold"])
        self.assertTrue(pod.probe("readinessProbe") and pod.probe("livenessProbe"))
        self.helm_test(release, pod)
        self.assertEqual(pod.end(), 0)

    def test_cluster_of_two_gateways_and_a_cell(self):
        values = yaml.safe_load((CHART / "ci" / "cpu-cluster-values.yaml").read_text())
        release = Release(self.folder, values, {"millrace-cell": {"secret": secrets.token_hex(32)}})
        gateways = [self.pod(release, "Deployment/demo-millrace-gateway", i) for i in range(2)]
        for gateway in gateways:
            gateway.wait("startupProbe", 30)
            self.assertTrue(gateway.probe("livenessProbe"))
            self.assertFalse(gateway.probe("readinessProbe"))  # no cell yet
        cell = self.pod(release, "StatefulSet/demo-millrace-cell", 0)
        cell.wait("startupProbe", 60)
        self.assertTrue(cell.probe("livenessProbe"))
        self.assertFalse(cell.probe("readinessProbe"))
        release.publish(gateways)  # the cell has looked the name up before it means anything
        cell.wait("readinessProbe", 30)
        for gateway in gateways:
            gateway.wait("readinessProbe", 60)
            self.helm_test(release, gateway)

        # A roll-out of the gateways: a new one, with an address of its own, is dialled; then an old one goes.
        gateways.append(self.pod(release, "Deployment/demo-millrace-gateway", 2))
        release.publish(gateways)
        gateways[2].wait("readinessProbe", 30)
        old = gateways.pop(0)
        release.publish(gateways)
        self.assertEqual(old.end(), 0)
        for gateway in gateways:
            self.assertTrue(gateway.probe("readinessProbe"))
            self.helm_test(release, gateway)

        # The cell's pod is deleted, while it works, and made again.
        url = f"http://{gateways[0].host}:{gateways[0].port('http')}"
        work = subprocess.Popen([BIN, "bench", "--url", url, "--prompt", "text", "--num-prompts", "4", "--concurrency", "4",
                                 "--input-len", "16", "--output-len", "400", "--timeout", "90"], stdout=subprocess.DEVNULL)
        wait_for("work", lambda: re.search(rb"^vllm:num_requests_running\{[^}]*\} 4$", self.metrics(gateways[0]), re.M), 30)
        self.assertEqual(cell.end(), 0)
        self.assertEqual(work.wait(60), 0)
        for gateway in gateways:
            wait_for("not ready", lambda: not gateway.probe("readinessProbe"), 30)
            self.assertTrue(gateway.probe("livenessProbe"))
        cell = self.pod(release, "StatefulSet/demo-millrace-cell", 0)
        for gateway in gateways:
            gateway.wait("readinessProbe", 60)
        self.helm_test(release, gateways[1])
        for pod in (cell, *gateways):
            self.assertEqual(pod.end(), 0)


if __name__ == "__main__":
    unittest.main(verbosity=2)
