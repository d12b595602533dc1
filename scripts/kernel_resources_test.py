#!/usr/bin/env python3
"""Tests of kernel_resources.py on a report as ptxas writes it."""

import pathlib
import subprocess
import sys
import tempfile
import unittest

import kernel_resources

# Two kernels for two architectures; the second spills on the second.
REPORT = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_ZN8millrace7kernels4cuda4leanILi8EEEvPf' for 'sm_80'
ptxas info    : Function properties for _ZN8millrace7kernels4cuda4leanILi8EEEvPf
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 80 registers, used 1 barriers, 32 bytes smem, 416 bytes cmem[0]
ptxas info    : Compiling entry function '_ZN8millrace7kernels4cuda3fatEPf' for 'sm_80'
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 255 registers
ptxas info    : Compiling entry function '_ZN8millrace7kernels4cuda3fatEPf' for 'sm_90a'
    16 bytes stack frame, 12 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 255 registers
"""


class KernelResources(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        kernel_resources.TABLE = self.folder / "resources.md"
        kernel_resources.ALLOWED = self.folder / "allowed.txt"
        kernel_resources.ALLOWED.write_text("# none\n")
        (self.folder / "x.o.resources").write_text(REPORT)

    def problems(self):
        return kernel_resources.check(kernel_resources.read([str(self.folder)]))

    def test_reads_names_and_numbers(self):
        kernels = kernel_resources.read([str(self.folder / "x.o")])
        self.assertEqual(kernels["lean<8>", "sm_80"], {"registers": 80, "shared": 32, "stack": 0, "spills": 0})
        self.assertEqual(kernels["fat", "sm_90a"], {"registers": 255, "shared": 0, "stack": 16, "spills": 20})
        self.assertIn("| `fat` | 255 / 0 | 255 / 0, stack 16, spills 20 |", kernel_resources.table(kernels))

    def test_spills_need_a_reason(self):
        self.assertEqual(self.problems(), ["fat for sm_90a: 16 bytes of stack, 20 spilled"])
        kernel_resources.ALLOWED.write_text("fat 20 a table indexed at run time\n")
        self.assertEqual(self.problems(), [])
        kernel_resources.ALLOWED.write_text("fat 19 too little\ngone 8 no such kernel\n")
        self.assertEqual(len(self.problems()), 2)

    def test_the_table_names_built_kernels_only(self):
        kernel_resources.ALLOWED.write_text("fat 20 reason\n")
        kernel_resources.TABLE.write_text("| kernel | sm_80 |\n|---|---|\n| `lean<8>` | 1 / 2 |\n| `old` | 1 / 2 |\n")
        self.assertEqual(len(self.problems()), 1)
        self.assertIn("old is not built", self.problems()[0])

    def test_wgmma_one_by_one_is_a_problem(self):
        self.assertEqual(kernel_resources.losses([str(self.folder)]), [])
        loss = "(C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized due to a call in function 'fat'"
        (self.folder / "x.o.resources").write_text(REPORT + f"ptxas info    : {loss}\n")
        self.assertEqual(kernel_resources.losses([str(self.folder)]), [f"x.o.resources: {loss}"])
        self.assertIsNone(kernel_resources.QUIET.match(f"ptxas info    : {loss}"))

    def test_no_reports_is_a_problem(self):
        self.assertEqual(len(kernel_resources.check(kernel_resources.read([str(self.folder / "none.o")]))), 1)

    def test_record_keeps_the_report_and_passes_the_rest_on(self):
        script = "import sys; sys.stderr.write('ptxas info    : Used 9 registers\\nwarning: look\\n'); sys.exit({})"
        target = self.folder / "y.o"
        for code in (0, 3):
            done = subprocess.run(
                [sys.executable, kernel_resources.__file__, "record", sys.executable, "-c", script.format(code), "-o",
                 str(target)], capture_output=True, text=True)
            self.assertEqual(done.returncode, code)
            self.assertEqual(done.stderr, "warning: look\n")
        self.assertEqual((self.folder / "y.o.resources").read_text(), "ptxas info    : Used 9 registers\n")


if __name__ == "__main__":
    unittest.main()
