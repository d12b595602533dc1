#!/usr/bin/env python3
"""Releases of other shapes than life_cycle_test.py's, on its stand-in cluster: everything in one pod, cells over two pods as
StatefulSets and as a LeaderWorkerSet, a cluster with all optional APIs, a model on the node's disk; and objects that an API server
refuses."""

import os
import re
import shutil
import subprocess
import unittest

import life_cycle_test
from life_cycle_test import CHART, HELMS, ROOT, Cluster, ask
from stand_in.api_server import OPTIONAL

SAMPLE = ROOT / "models" / "sample"
MULTI_NODE = ("--values", str(CHART / "ci" / "cpu-multi-node-values.yaml"))


class Shapes(life_cycle_test.LifeCycle):
    test_helm3 = test_helm4 = None  # the whole life has a test of its own
    version = HELMS[1]

    def setUp(self):
        self.test_folder = self.folder / self.id().rpartition(".")[2]
        self.test_folder.mkdir()
        self.make_cluster()

    def make_cluster(self, apis=()):
        folder = self.test_folder / f"cluster{len(apis)}"
        folder.mkdir()
        self.cluster = Cluster(folder, self.image, self.config, apis)
        self.addCleanup(self.cluster.close)

    def install(self, *values: str, fails: bool = False) -> str:
        limit = ("--wait", "--timeout", "10s" if fails else "120s")
        return self.helm("install", "demo", str(CHART), *values, "--create-namespace", *limit, fails=fails)

    def url(self) -> str:
        return f"http://{self.cluster.address('demo-millrace')}:80"

    def serve_and_go(self, left=()):
        self.assertIn("Succeeded", self.helm("test", "demo", *(["--logs"] if self.version == "helm4" else [])))
        text = ask(self.url())
        self.helm("uninstall", "demo", "--wait", "--timeout", "60s")
        self.wait_for("nothing left", lambda: not self.cluster.names("pods"), 60)
        with self.cluster.api.store.lock:
            names = {(p, n) for (p, _, n) in self.cluster.api.store.objects if p != "namespaces"}
        self.assertEqual(names, set(left))
        self.assertEqual(self.cluster.controllers.errors + self.cluster.node.errors, [], self.cluster.logs())
        return text

    def test_standalone_as_the_readme_has_it(self):
        self.install("--set", "mode=standalone")
        self.assertEqual(self.cluster.names("statefulsets"), [])
        self.assertTrue(self.all_ready("gateway", 1), self.cluster.logs())
        self.assertTrue(self.serve_and_go())

    def test_cells_over_two_pods_as_statefulsets(self):
        self.version = HELMS[0]
        self.cluster.secret("millrace-node-agent")
        self.install(*MULTI_NODE)
        self.assertEqual(self.cluster.names("statefulsets"), ["demo-millrace-cell-0", "demo-millrace-cell-0-node"])
        self.assertTrue(self.all_ready("cell", 2), self.cluster.logs())
        self.assertTrue(self.serve_and_go([("secrets", "millrace-node-agent")]))

    def test_cells_over_two_pods_as_a_leader_worker_set(self):
        """On a cluster with every optional API, whose objects the chart then makes too. A leader that is lost takes its group with it,
        and both come again."""
        self.make_cluster(tuple(OPTIONAL))
        self.cluster.secret("millrace-node-agent")
        self.install(*MULTI_NODE)
        self.assertEqual(self.cluster.names("leaderworkersets"), ["demo-millrace-cell"])
        self.assertEqual(sorted(self.cluster.pods("cell")), ["demo-millrace-cell-0", "demo-millrace-cell-0-1"])
        self.assertEqual(self.cluster.names("servicemonitors") + self.cluster.names("prometheusrules"), ["demo-millrace"] * 2)
        self.wait_for("the cell", lambda: self.all_ready("cell", 2))  # Helm waits for the gateway, and knows nothing of this kind
        expected = ask(self.url())
        before = self.cluster.uids("cell")
        with self.cluster.api.store.lock:
            self.cluster.api.store.delete("pods", self.cluster.api.store.find("pods", "serving", "demo-millrace-cell-0"))
        self.wait_for("a new group", lambda: self.all_ready("cell", 2) and not before & self.cluster.uids("cell"))
        self.wait_for("the gateway is ready again", lambda: self.all_ready("gateway", 1))
        self.assertEqual(ask(self.url()), expected)
        self.assertEqual(self.serve_and_go([("secrets", "millrace-node-agent")]), expected)

    def test_a_damaged_model_on_the_nodes_disk(self):
        """Is named by the pod's log; the whole one is served as soon as it is there."""
        models = self.test_folder / "models"
        shutil.copytree(SAMPLE, models / "m")
        subprocess.run(["chmod", "-R", "a+rX", str(self.test_folder)], check=True)
        weights = models / "m" / "model.safetensors"
        whole = weights.read_bytes()
        os.truncate(weights, len(whole) - 1000)
        values = ["--set", "mode=standalone", "--set", "model.source.kind=hostPath", "--set", f"model.source.hostPath={models}",
                  "--set", "model.path=/models/m", "--set", "model.servedName=sample"]
        self.install(*values, fails=True)
        pod, = self.cluster.pods("gateway").values()
        self.assertIn("CrashLoopBackOff", pod["status"]["reason"])
        self.assertIn("model.safetensors", self.cluster.node.log(pod))
        # Its length again, but a bit is wrong: only the sums beside it tell.
        weights.write_bytes(whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:])
        self.wait_for("the damage", lambda: re.search(r"model\.safetensors: .*SHA-256", self.cluster.node.log(pod)))
        weights.write_bytes(whole)
        self.wait_for("the pod", lambda: self.all_ready("gateway", 1))
        self.assertTrue(self.serve_and_go())

    def test_what_the_api_server_refuses_fails_with_the_field(self):
        service = '{"apiVersion":"v1","kind":"Service","metadata":{"name":"x"},"spec":{"ports":[{"port":"http"}],"surplus":1}}'
        for version in HELMS:
            self.version = version
            said = self.helm("install", version, str(CHART), "--create-namespace", "--set", "image.tag=missing", "--set-json",
                             f"extraObjects=[{service}]", fails=True)
            self.assertIn('Service "x" is invalid', said)
            self.assertIn("spec/ports/0/port", said)
            self.assertIn("surplus", said)


if __name__ == "__main__":
    unittest.main(verbosity=2)
