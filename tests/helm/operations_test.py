#!/usr/bin/env python3
"""Every command of docs/operations.md, from the top, on the stand-in cluster of life_cycle_test.py."""

import json
import os
import re
import subprocess
import sys
import time
import unittest

import life_cycle_test
from life_cycle_test import BIN, ROOT, VENV, Cluster, ready

DOCUMENT = ROOT / "docs" / "operations.md"


def commands() -> list[tuple[str, str]]:
    """(section, command) of the indented lines."""
    found, section = [], ""
    for line in DOCUMENT.read_text().splitlines():
        if line.startswith("## "):
            section = line[3:]
        elif line.startswith("    "):
            found.append((section, line.strip()))
    return found


class Operations(unittest.TestCase):
    setUpClass = classmethod(life_cycle_test.LifeCycle.setUpClass.__func__)
    tearDownClass = classmethod(life_cycle_test.LifeCycle.tearDownClass.__func__)

    def test_the_document(self):
        cluster = Cluster(self.folder, self.image, self.config)
        self.addCleanup(cluster.close)
        programs = self.folder / "programs"
        programs.mkdir()
        for name, target in (("helm", VENV / "bin/helm4"), ("kubectl", VENV / "bin/kubectl"), ("millrace", BIN)):
            (programs / name).symlink_to(os.path.abspath(target))
        environment = {"PATH": f"{programs}:{os.environ['PATH']}", "HOME": str(self.folder), "KUBECONFIG": str(self.folder / "kubeconfig")}
        said = {}
        for section, command in commands():
            with self.subTest(command):
                begin = time.monotonic()
                result = subprocess.run(["bash", "-c", command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
                print(f"{time.monotonic() - begin:6.1f} s  {command}", file=sys.stderr)
                self.assertEqual(result.returncode, 0, f"{command}\n{result.stdout[-2000:]}{result.stderr[-2000:]}\n{cluster.logs()}")
                said.setdefault(section, []).append(result.stdout)
                if section.startswith(("Install", "Scale", "Upgrade")) and "--wait" in command:
                    cells = 3 if "replicas=3" in command else 2
                    self.assertEqual(sum(map(ready, cluster.pods("cell").values())), cells, command)
        self.assertIn("total GiB", said["Size a cluster"][0])
        self.assertEqual(json.loads(said["Install"][-1])["data"][0]["id"], "sample")
        self.assertEqual(len(re.findall(r"\bRunning\b|\s1/1\s|^lfm-millrace-", said["When it does not come up"][0], re.M)), 2)
        self.assertTrue(all(said["When it does not come up"]))
        self.assertIn("vllm:num_requests_running", said["Watch"][0])
        deadline = time.monotonic() + 60
        while cluster.names("pods") and time.monotonic() < deadline:  # they end after their StatefulSet
            time.sleep(0.1)
        self.assertEqual(cluster.names("secrets") + cluster.names("pods") + cluster.names("services"), [])
        self.assertEqual(cluster.controllers.errors + cluster.node.errors, [], cluster.logs())


if __name__ == "__main__":
    unittest.main(verbosity=2)
