#!/usr/bin/env python3
"""gpu-suite and gpu-bench with programs that pass, fail, crash and hang on command."""

import importlib.machinery
import importlib.util
import json
import os
import pathlib
import stat
import subprocess
import sys
import tempfile
import unittest

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
sys.dont_write_bytecode = True
import gpu_parts  # noqa: E402

# A test program as GoogleTest makes them: Good passes, Bad.Fails fails, Crash dies in its second test when that runs
# behind the first, Hang never ends in its second test.
FAKE_TESTS = r'''#!/usr/bin/env python3
import os, sys, time
TESTS = {"Good": ["One", "Two"], "Bad": ["Works", "Fails"], "Crash": ["First", "Second"], "Hang": ["Quick", "Slow"],
         "Skipped": ["Only"]}
filter = next((a.split("=", 1)[1] for a in sys.argv if a.startswith("--gtest_filter=")), "*")
suites = {filter.split(".")[0]: TESTS[filter.split(".")[0]]} if filter != "*" else TESTS
one = filter.split(".")[1] if "." in filter and not filter.endswith("*") else None
if "--gtest_list_tests" in sys.argv:
    for suite, tests in suites.items():
        print(suite + ".")
        for test in tests:
            print("  " + test)
    sys.exit(0)
failed, passed, ran = [], 0, 0
for suite, tests in suites.items():
    for test in [one] if one else tests:
        name = suite + "." + test
        print("[ RUN      ] " + name, flush=True)
        ran += 1
        if suite == "Skipped":
            print("[  SKIPPED ] %s (0 ms)" % name)
            continue
        if name == "Crash.Second" and ran > 1:
            os.abort()
        if name == "Hang.Slow":
            time.sleep(100)
        if name == "Bad.Fails":
            failed.append(name)
            print("CudaError: launch x.cu:1: an illegal address\n[  FAILED  ] %s (0 ms)" % name)
            continue
        passed += 1
        print("[       OK ] %s (0 ms)" % name)
print("[  PASSED  ] %d tests." % passed)
sys.exit(1 if failed else 0)
'''
FAKE_MILLRACE = "#!/bin/sh\n[ \"$1\" = devices ] && printf '%s' \"$FAKE_DEVICES\"\nexit 0\n"
DEVICE = "0 9.0 132 150754820096 149032730624 NVIDIA H200\n"


def script(name: str):
    loader = importlib.machinery.SourceFileLoader(name.replace("-", "_"), str(HERE / name))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
    loader.exec_module(module)
    return module


class Scripts(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.build = pathlib.Path(self.folder.name)
        for name, text in {"bin/millrace": FAKE_MILLRACE, "tests/kernels/cuda/kernels_cuda_test": FAKE_TESTS,
                           "tests/worker/cuda/worker_cuda_test": FAKE_TESTS}.items():
            path = self.build / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def run_script(self, name: str, *arguments: str, device: bool = True) -> tuple[int, dict, str]:
        out = self.build / "out"
        done = subprocess.run([sys.executable, "-B", str(HERE / name), "--build", str(self.build), "--out", str(out),
                               *arguments], capture_output=True, text=True, timeout=100,
                              env={**os.environ, "FAKE_DEVICES": DEVICE if device else ""})
        return done.returncode, json.loads((out / f"{name}.json").read_text())["parts"], done.stdout + done.stderr

    def test_every_failure_is_told_and_none_stops_the_next_part(self):
        only = ["kernels (Good|Bad|Crash|Skipped)", "worker Good"]
        code, parts, text = self.run_script("gpu-suite", "--only", *only)
        self.assertEqual(code, 1, text)
        status = {name: part["status"] for name, part in parts.items()}
        self.assertEqual(status, {"device": "passed", "kernels Good": "passed", "kernels Bad": "failed",
                                  "kernels Crash": "failed", "kernels Skipped": "skipped", "worker Good": "passed"})
        self.assertIn("NVIDIA H200", parts["device"]["detail"])
        self.assertEqual(len(parts["kernels Bad"]["facts"]["failed_tests"]), 1)
        self.assertIn("illegal address", parts["kernels Bad"]["facts"]["failed_tests"][0])
        self.assertIn("alone: all pass", parts["kernels Crash"]["detail"])

    def test_a_hanging_test_ends_at_the_limit(self):
        code, parts, text = self.run_script("gpu-suite", "--limit", "20", "--only", "kernels Hang", "worker Good")
        self.assertEqual(code, 1, text)
        self.assertEqual(parts["kernels Hang"]["status"], "failed")
        self.assertIn("Hang.Slow (did not end)", parts["kernels Hang"]["detail"])
        self.assertEqual(parts["worker Good"]["status"], "skipped")
        self.assertIn("no time", parts["worker Good"]["detail"])

    def test_without_a_device_parts_are_skipped_and_only_a_required_one_fails(self):
        code, parts, text = self.run_script("gpu-suite", device=False)
        self.assertEqual(code, 0, text)
        self.assertTrue(all(part["status"] == "skipped" for part in parts.values()), parts)
        self.assertIn("no CUDA device", text)
        for name in ("gpu-suite", "gpu-bench"):
            self.assertEqual(self.run_script(name, "--require-device", device=False)[0], 3)

    def test_programs_that_were_not_built_are_skipped(self):
        code, parts, _ = self.run_script("gpu-bench", "--only", "kernels 24b")
        self.assertEqual((code, parts["kernels 24b"]["status"]), (0, "skipped"))
        self.assertIn("not built", parts["kernels 24b"]["detail"])

    def test_a_command_that_hangs_is_killed_with_all_it_started(self):
        place = gpu_parts.Place({}, self.build, dict(os.environ), "c", "mpirun")
        run = gpu_parts.Run("x", place, self.build / "o", 60, [])
        code, output = run.command(["sh", "-c", "echo begun; sleep 50 & wait"], 1)
        run.close()
        self.assertEqual(code, 124)
        self.assertIn("begun", output)

    def test_orders_name_suites_of_the_tree(self):
        suite = script("gpu-suite")
        sources = "".join(p.read_text() for folder in ("tests/kernels/cuda", "tests/worker/cuda")
                          for p in (HERE.parent / folder).glob("*_test.c*"))
        for name in suite.KERNEL_ORDER + suite.WORKER_ORDER + [t.split(".")[0] for t in suite.SANITIZED.split(":")]:
            self.assertIn(name.split("/")[-1], sources)


if __name__ == "__main__":
    unittest.main()
