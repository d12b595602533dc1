#!/usr/bin/env python3
"""The container image: its final stage built by the real Buildah, its files checked, its process run.

In Runs the stage that compiles is replaced by what it leaves, made by the same scripts/image_root.py from the binary
under test; everything after it is the Dockerfile's own. Built, which scripts/test-image runs and ctest does not, goes through
all stages from a base that debootstrap makes. The container is what a runtime makes of the
image: namespaces for processes and mounts, a read-only root, the image's user, environment and entry point. Without
Buildah, or without the right to make namespaces, the test says so and counts as skipped.
"""

import hashlib
import json
import os
import pathlib
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
import unittest
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "tests" / "support")]
from container import Container, may_run  # noqa: E402
from image_root import is_elf  # noqa: E402

BIN = os.environ.get("MILLRACE_BIN", str(ROOT / "build/cpu/bin/millrace"))
MIB = 2**20
CPU_BUDGET = 150 * MIB   # over the base's libraries
CUDA_BUDGET = 2500 * MIB


def image_root(out: pathlib.Path, *more: str, **environment: str) -> dict:
    run = subprocess.run([str(ROOT / "scripts/image_root.py"), "--binary", BIN, "--out", str(out), *more],
                         capture_output=True, text=True, env={**os.environ, **environment})
    if run.returncode:
        raise AssertionError(run.stderr)
    return json.loads(run.stdout)


def digest(folder: pathlib.Path) -> str:
    """Of names, modes, times, links and contents."""
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        info = path.lstat()
        total.update(f"{path.relative_to(folder)} {info.st_mode:o} {int(info.st_mtime)}\n".encode())
        total.update(os.readlink(path).encode() if path.is_symlink() else path.read_bytes() if path.is_file() else b"")
    return total.hexdigest()


class Files(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.scratch = pathlib.Path(tempfile.mkdtemp(prefix="millrace-image-"))
        cls.root = cls.scratch / "image"
        cls.report = image_root(cls.root, SOURCE_DATE_EPOCH="1700000000")

    @classmethod
    def tearDownClass(cls):
        shutil.rmtree(cls.scratch)

    def files(self):
        return [p for p in self.root.rglob("*") if p.is_file() and not p.is_symlink()]

    def test_size_is_within_the_budget(self):
        total = sum(p.stat().st_size for p in self.files())
        self.assertLess(total - self.report["base_bytes"], CPU_BUDGET, self.report["by_package"])
        # The report leaves out only the texts that the script writes itself.
        self.assertAlmostEqual(total, self.report["total_bytes"], delta=MIB)

    def test_cuda_image_is_within_its_budget(self):
        nccl = next((p for folder in ("/usr/local/cuda/lib64", "/usr/local/cuda/lib", "/usr/lib/x86_64-linux-gnu")
                     if (p := pathlib.Path(folder, "libnccl.so.2")).exists()), None)
        if nccl is None:
            self.skipTest("no libnccl.so.2 on this machine")
        report = image_root(self.scratch / "cuda", "--dry-run", "--library", str(nccl))
        self.assertGreater(report["total_bytes"], nccl.stat().st_size)
        self.assertLess(report["total_bytes"], CUDA_BUDGET)
        self.assertFalse((self.scratch / "cuda").exists())

    def test_nothing_raises_rights_and_nobody_but_root_may_write(self):
        for path in self.root.rglob("*"):
            mode = path.lstat().st_mode
            self.assertFalse(mode & (stat.S_ISUID | stat.S_ISGID), path)
            if not stat.S_ISLNK(mode) and path != self.root / "tmp":
                self.assertFalse(mode & 0o022, path)
        self.assertEqual((self.root / "tmp").stat().st_mode & 0o7777, 0o1777)

    def test_no_shell_no_package_manager_no_caches(self):
        programs = {p.name for p in (self.root / "usr/bin").iterdir()}
        self.assertEqual(programs, {"millrace", "mpirun", "mpirun.openmpi", "orterun", "orted", "tini", "tini-static"})
        self.assertFalse((self.root / "var/cache").exists() or (self.root / "var/lib/apt").exists())

    def test_every_library_is_there(self):
        loader = self.root / "usr/lib64/ld-linux-x86-64.so.2"
        missing = []
        for path in self.files():
            if not is_elf(str(path)) or path.name.startswith(("ld-linux", "tini")):
                continue
            run = subprocess.run(["chroot", str(self.root), "/" + str(loader.relative_to(self.root)), "--list",
                                  "/" + str(path.relative_to(self.root))], capture_output=True, text=True)
            missing += [f"{path.name}: {line.strip()}" for line in run.stdout.splitlines() if "not found" in line]
            self.assertEqual(run.returncode, 0, f"{path}: {run.stderr}")
        self.assertEqual(missing, [])

    def test_the_same_inputs_make_the_same_tree(self):
        again = self.scratch / "again"
        image_root(again, SOURCE_DATE_EPOCH="1700000000")
        self.assertEqual(digest(again), digest(self.root))
        shutil.rmtree(again)

    def test_every_file_is_in_the_sbom_under_its_package(self):
        sbom = json.loads((self.root / "usr/share/millrace/sbom.spdx.json").read_text())
        packages = {p["SPDXID"]: p for p in sbom["packages"]}
        owner = {r["relatedSpdxElement"]: r["spdxElementId"] for r in sbom["relationships"]
                 if r["relationshipType"] == "CONTAINS"}
        listed = {}
        for file in sbom["files"]:
            listed[file["fileName"][1:]] = next(c["checksumValue"] for c in file["checksums"] if c["algorithm"] == "SHA256")
            self.assertIn(owner[file["SPDXID"]], packages)
        made_here = ("/etc/passwd", "/etc/group", "/etc/nsswitch.conf", "/etc/os-release", "/var/lib/dpkg/status.d/",
                     "/usr/share/millrace/sbom.spdx.json")
        for path in self.files():
            name = "/" + str(path.relative_to(self.root))
            if not name.startswith(made_here):
                self.assertEqual(listed.pop(name, None), hashlib.sha256(path.read_bytes()).hexdigest(), name)
        self.assertEqual(listed, {})
        for package in packages.values():
            if package.get("supplier") == "Organization: Debian":
                version = subprocess.run(["dpkg-query", "-W", "-f", "${Version}\n", package["name"]],
                                         capture_output=True, text=True).stdout.split("\n")[0]
                self.assertEqual(package["versionInfo"], version)
        records = {p.name for p in (self.root / "var/lib/dpkg/status.d").iterdir()}
        contained = {packages[i]["name"] for i in set(owner.values())} - {"millrace"}
        self.assertEqual(records, contained)
        for name in records:
            self.assertTrue((self.root / f"usr/share/doc/{name}/copyright").exists(), name)

    def test_refuses_what_it_cannot_use(self):
        run = subprocess.run([str(ROOT / "scripts/image_root.py"), "--binary", "/nowhere/millrace", "--out",
                              str(self.scratch / "x")], capture_output=True, text=True)
        self.assertEqual(run.returncode, 2)
        self.assertIn("/nowhere/millrace: no such file", run.stderr)
        run = subprocess.run([str(ROOT / "scripts/image_root.py"), "--binary", BIN, "--out", str(self.root)],
                             capture_output=True, text=True)
        self.assertEqual(run.returncode, 2)
        self.assertIn("exists; name a new folder", run.stderr)


class Service:
    """A container of the image that runs `millrace serve`."""

    def __init__(self, root: str, config: dict, arguments: list[str]):
        environment = dict(variable.split("=", 1) for variable in config["Env"])
        self.container = Container(root, [*config["Entrypoint"], *arguments], environment, user=config["User"])
        self.process = self.container.process
        self.lines: list[str] = []

    def url(self) -> str:
        for line in self.process.stdout:
            self.lines.append(line)
            if found := re.search(r"serves \S+ at (http://\S+)", line):
                return found.group(1).replace("0.0.0.0", "127.0.0.1")
        raise AssertionError("the container ended before it was ready:\n" + "".join(self.lines))

    def end(self) -> int:
        self.container.signal(signal.SIGTERM)
        with self.process.stdout as rest:
            self.lines += rest.readlines()
        return self.process.wait(60)


def post(url: str, body: dict) -> dict:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)


class Runs(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        if shutil.which("buildah") is None:
            print("skipped=1: no buildah (scripts/install-deps)")
            sys.exit(77)
        if reason := may_run():
            print(f"skipped=1: {reason}")
            sys.exit(77)
        cls.scratch = pathlib.Path(tempfile.mkdtemp(prefix="millrace-image-"))
        cls.build()
        cls.config = json.loads(cls.buildah("inspect", "--type", "image", "millrace:test"))["OCIv1"]["config"]
        cls.container = cls.buildah("from", "millrace:test").strip()
        cls.root = cls.buildah("mount", cls.container).strip()

    @classmethod
    def build(cls):
        image_root(cls.scratch / "context/image")
        cls.buildah("build", "--isolation", "chroot", "--build-context", f"build-cpu={cls.scratch}/context", "--target", "cpu",
                    "--tag", "millrace:test", str(ROOT))

    @classmethod
    def tearDownClass(cls):
        cls.buildah("umount", cls.container)
        cls.buildah("rm", cls.container)
        shutil.rmtree(cls.scratch)

    @classmethod
    def buildah(cls, *arguments: str) -> str:
        run = subprocess.run(["buildah", "--storage-driver", "vfs", "--root", f"{cls.scratch}/root", "--runroot",
                              f"{cls.scratch}/run", *arguments], capture_output=True, text=True)
        if run.returncode:
            raise AssertionError(f"buildah {arguments[0]}: {run.stderr}")
        return run.stdout

    def test_what_the_image_says_of_itself(self):
        self.assertEqual(self.config["User"], "10001:10001")
        self.assertEqual(self.config["Entrypoint"], ["/usr/bin/tini", "--", "/usr/bin/millrace"])
        self.assertEqual(self.config["Labels"]["org.opencontainers.image.licenses"], "Apache-2.0")
        self.assertIn("8000/tcp", self.config["ExposedPorts"])
        self.assertEqual(os.stat(f"{self.root}/tmp").st_mode & 0o7777, 0o1777)  # as the tree had it

    def test_version(self):
        service = Service(self.root, self.config, ["--version"])
        text = service.process.communicate(timeout=60)[0]
        self.assertEqual((service.process.returncode, text.split()[0]), (0, "millrace"), text)

    def test_the_default_command_is_the_one_in_the_dockerfile(self):
        self.assertEqual(self.config["Cmd"][:3], ["serve", "--model", "/usr/share/millrace/models/sample"])
        self.assertTrue(os.path.exists(f"{self.root}/usr/share/millrace/models/sample/model.safetensors"))

    def test_a_service_of_four_ranks_lives_loses_one_comes_back_and_ends(self):
        arguments = [*self.config["Cmd"], "--port", "0", "--set", "gateway.cell_port=0", "--stages", "2", "--lanes", "2"]
        service = Service(self.root, self.config, arguments)
        container = service.container
        try:
            url = service.url()
            body = {"model": "sample", "prompt": "It is a truth", "max_tokens": 8, "temperature": 0}
            text = post(url + "/v1/completions", body)["choices"][0]["text"]
            self.assertTrue(text)

            processes = container.processes()
            first = processes[container.first()]
            self.assertEqual((first["Name"], first["NSpid"].split()[-1]), ("tini", "1"))
            self.assertEqual({p["Uid"].split()[0] for p in processes.values()}, {"10001"})
            workers = [pid for pid, p in processes.items() if b"worker" in p["command"]]
            self.assertGreaterEqual(len(workers), 4)

            os.kill(workers[-1], signal.SIGKILL)
            deadline = time.monotonic() + 60
            while True:  # the cell restarts; until then answers are errors
                try:
                    if post(url + "/v1/completions", body)["choices"][0]["text"] == text:
                        break
                except OSError:
                    pass
                self.assertLess(time.monotonic(), deadline, "the cell did not come back")
                time.sleep(0.2)
            while zombies := [p["Name"] for p in container.processes().values() if p["State"].startswith("Z")]:
                self.assertLess(time.monotonic(), deadline, f"left unreaped: {zombies}")
                time.sleep(0.2)
        finally:
            status = service.end()
        self.assertEqual(status, 0, "".join(service.lines))


class Built(Runs):
    """The same of an image that was built whole."""

    @classmethod
    def build(cls):
        base = cls.scratch / "base"
        subprocess.run(["debootstrap", "--variant=minbase", "bookworm", str(base)], check=True, stdout=sys.stderr)
        container = cls.buildah("from", "scratch").strip()
        cls.buildah("add", "--quiet", container, str(base), "/")
        cls.buildah("commit", "--quiet", "--rm", container, "localhost/millrace-base")
        shutil.rmtree(base)
        begin = time.monotonic()
        cls.buildah("build", "--isolation", "chroot", "--pull=never", "--build-arg", "BASE=localhost/millrace-base", "--target", "cpu",
                    "--tag", "millrace:test", str(ROOT))
        print(f"buildah build: {time.monotonic() - begin:.0f} s", file=sys.stderr)

    def test_its_files(self):
        root = pathlib.Path(self.root)
        entries = [p for p in root.rglob("*") if not p.is_symlink()]
        total = sum(p.stat().st_size for p in entries if p.is_file())
        print(f"the image's files: {total / 1e6:.0f} MB", file=sys.stderr)
        self.assertLess(total, CPU_BUDGET)  # with the C and C++ libraries
        self.assertEqual([p for p in entries if p.stat().st_mode & (stat.S_ISUID | stat.S_ISGID)], [])
        self.assertEqual([p.name for folder in ("bin", "usr/bin") for p in (root / folder).glob("*sh")], [])
        sbom = json.loads((root / "usr/share/millrace/sbom.spdx.json").read_text())
        self.assertGreater(len(sbom["packages"]), 20)
        for file in sbom["files"]:
            path = root / file["fileName"].lstrip("./")
            sums = {c["algorithm"]: c["checksumValue"] for c in file["checksums"]}
            self.assertEqual(hashlib.sha256(path.read_bytes()).hexdigest(), sums["SHA256"], path)


if __name__ == "__main__":
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    unittest.main(argv=[sys.argv[0], *sys.argv[1:]], verbosity=2)
