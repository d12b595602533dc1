"""What scripts/gpu-suite and scripts/gpu-bench share: where the programs are, parts with a time limit, a summary.

Standard library only.
"""

import argparse
import contextlib
import ctypes
import dataclasses
import datetime
import glob
import http.client
import json
import os
import pathlib
import re
import resource
import shutil
import signal
import site
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent


class Skip(Exception):
    """The part cannot run here; the reason."""


class Failure(Exception):
    """The part has failed; why."""


@dataclasses.dataclass
class Place:
    """A build folder of the sources, or a bundle (scripts/gpu-bundle) that was unpacked."""

    programs: dict[str, pathlib.Path]
    root: pathlib.Path  # models/ and scripts/
    environment: dict[str, str]
    commit: str
    mpirun: str

    def program(self, name: str) -> str:
        path = self.programs.get(name)
        if path is None or not path.exists():
            raise Skip(f"{name} is not built ({path})")
        return str(path)


PROGRAMS = {
    "millrace": "bin/millrace",
    "kernels_cuda_test": "tests/kernels/cuda/kernels_cuda_test",
    "kernels_cuda_bench": "tests/kernels/cuda/kernels_cuda_bench",
    "worker_cuda_test": "tests/worker/cuda/worker_cuda_test",
    "engine_cuda_bench": "tests/worker/cuda/engine_cuda_bench",
}


def python_libraries() -> list[str]:
    """Folders of NCCL and cuBLAS as Python packages bring them."""
    roots = set(site.getsitepackages() + [p for p in sys.path if p.endswith("-packages")])
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        found = subprocess.run(["python3", "-c", "import site; print('\\n'.join(site.getsitepackages()))"],
                               capture_output=True, text=True, timeout=30, check=True).stdout
        roots.update(found.split())
    folders = []
    for root in sorted(roots):
        for library in ("libnccl.so.2", "libcublas.so.13", "libcublas.so.12"):
            folders += [str(pathlib.Path(p).parent) for p in glob.glob(f"{root}/nvidia/*/lib/{library}")]
    return list(dict.fromkeys(folders))


def find_place(bundle: str | None, build: str | None) -> Place:
    environment = dict(os.environ)
    paths = python_libraries()
    if bundle is None and (ROOT / "environment").exists():
        bundle = str(ROOT)  # started from inside a bundle
    mpirun = "mpirun"
    if bundle is not None:
        root = pathlib.Path(bundle).resolve()
        programs = {name: root / "bin" / name for name in PROGRAMS}
        for line in (root / "environment").read_text().splitlines():
            if line and not line.startswith("#"):
                key, value = line.split("=", 1)
                environment[key] = value.replace("@", str(root))
        commit = environment["MILLRACE_COMMIT"]
        mpirun = environment["MILLRACE_MPIRUN"]
        paths.insert(0, str(root / "lib"))
        try:
            ctypes.CDLL("libstdc++.so.6")
        except OSError:
            paths.insert(1, str(root / "lib/compiler"))
        # A place to write in, also where the bundle itself is read-only.
        environment["MILLRACE_TEST_CHECKPOINTS"] = "/tmp/millrace-checkpoints"
        environment["MILLRACE_TEST_SOURCE_DIR"] = str(root)
        environment["MILLRACE_TEST_PYTHON"] = sys.executable
    else:
        root = ROOT
        folder = pathlib.Path(build) if build else ROOT / "build/cuda"
        programs = {name: folder.resolve() / path for name, path in PROGRAMS.items()}
        commit = "unknown"
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            commit = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], capture_output=True,
                                    text=True, check=True).stdout.strip()
    if environment.get("LD_LIBRARY_PATH"):
        paths.append(environment["LD_LIBRARY_PATH"])
    environment["LD_LIBRARY_PATH"] = ":".join(paths)
    environment["MILLRACE_MPIRUN"] = mpirun
    return Place(programs, root, environment, commit, mpirun)


@dataclasses.dataclass
class Outcome:
    status: str  # passed, failed, skipped
    detail: str = ""
    seconds: float = 0.0
    facts: dict = dataclasses.field(default_factory=dict)


class Run:
    """Parts one after the other, each within its own limit and that of the whole."""

    def __init__(self, name: str, place: Place, out: pathlib.Path, limit_s: float, only: list[str]):
        self.name = name
        self.place = place
        self.out = out
        self.only = only
        self.deadline = time.monotonic() + limit_s
        self.outcomes: dict[str, Outcome] = {}
        out.mkdir(parents=True, exist_ok=True)
        # A thousand streams are a thousand sockets at either end.
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = 65536 if hard == resource.RLIM_INFINITY else min(hard, 65536)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
        # Programs write to it themselves, so what they said is there when all this is ended from outside.
        self.log_path = out / f"{name}.log"
        self.log_path.write_bytes(b"")
        self.log = open(self.log_path, "a", encoding="utf-8")
        self.part_deadline = self.deadline

    def left(self) -> float:
        """Seconds of the part that runs."""
        return self.part_deadline - time.monotonic()

    def note(self, text: str):
        self.log.write(text if text.endswith("\n") else text + "\n")
        self.log.flush()

    def part(self, name: str, limit_s: float, body):
        if self.only and not any(re.fullmatch(pattern, name) for pattern in self.only):
            return
        begin = time.monotonic()
        self.note(f"\n===== {name}")
        left = self.deadline - begin
        outcome = Outcome("skipped", "no time is left")
        if left > 5:
            self.part_deadline = begin + min(limit_s, left)
            outcome = Outcome("passed")
            try:
                body(outcome)
            except Skip as why:
                outcome.status, outcome.detail = "skipped", str(why)
            except (Failure, subprocess.SubprocessError, http.client.HTTPException, OSError, ValueError, KeyError,
                    IndexError) as why:
                outcome.status, outcome.detail = "failed", f"{type(why).__name__}: {why}"
        outcome.seconds = round(time.monotonic() - begin, 1)
        self.outcomes[name] = outcome
        print(f"{outcome.status:8} {name:34} {outcome.seconds:7.1f} s  {outcome.detail[:300]}", flush=True)
        self.note(f"===== {name}: {outcome.status} {outcome.detail}")
        self.write()

    def command(self, words: list[str], limit_s: float | None = None, environment: dict | None = None) -> tuple[int, str]:
        """Exit status (124 when its time was over) and output, which goes to the log as well."""
        limit = max(1.0, min(limit_s or self.left(), self.left()))
        self.note("$ " + " ".join(words))
        begin = self.log_path.stat().st_size
        process = subprocess.Popen(words, stdout=self.log, stderr=subprocess.STDOUT,
                                   env={**self.place.environment, **(environment or {})}, start_new_session=True)
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            code = 124
            self.note(f"\n[ended after {limit:.0f} s]")
        output = self.log_path.read_bytes()[begin:].decode("utf-8", "replace")
        if not output.endswith("\n"):
            self.note("")
        return code, output

    def write(self):
        summary = {"run": self.name, "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
                   "commit": self.place.commit,
                   "parts": {name: dataclasses.asdict(o) for name, o in self.outcomes.items()}}
        (self.out / f"{self.name}.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")

    def close(self) -> int:
        counts = {status: sum(o.status == status for o in self.outcomes.values())
                  for status in ("passed", "failed", "skipped")}
        print(f"\n{self.name}: {counts['passed']} parts passed, {counts['failed']} failed, {counts['skipped']} skipped; "
              f"{self.out}/{self.name}.json and .log")
        for name, outcome in self.outcomes.items():
            if outcome.status == "failed":
                print(f"  failed: {name}: {outcome.detail}")
        self.log.close()
        return 1 if counts["failed"] else 0


class Service:
    """`millrace serve`, ready for requests."""

    def __init__(self, run: Run, arguments: list[str], limit_s: float):
        self.run = run
        words = [run.place.program("millrace"), "serve", "--port", "0", "--set", "gateway.cell_port=0", *arguments]
        run.note("$ " + " ".join(words))
        begin = time.monotonic()
        self.output_path = run.out / f"serve-{os.getpid()}.tmp"
        self.output = open(self.output_path, "w+", encoding="utf-8", errors="replace")
        self.process = subprocess.Popen(words, stdout=self.output, stderr=subprocess.STDOUT, env=run.place.environment,
                                        start_new_session=True)
        deadline = begin + min(limit_s, run.left())
        while not (found := re.search(r"serves \S+ at (http://\S+)", self.text())):
            gone = self.process.poll() is not None or "starting again in" in self.text()
            if gone or time.monotonic() > deadline:
                self.stop()
                raise Failure("serve was not ready: " + self.text()[-600:].strip().replace("\n", " | "))
            time.sleep(0.05)
        self.url = found.group(1)
        self.start_s = time.monotonic() - begin

    def text(self) -> str:
        if self.output.closed:
            return self.last_text
        return self.output_path.read_text(encoding="utf-8", errors="replace")

    def stop(self):
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()
        if not self.output.closed:
            self.last_text = self.text()
            self.run.note(self.last_text)
            self.output.close()
            self.output_path.unlink()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()


def find_tool(name: str) -> str | None:
    """A program of the CUDA toolkit, on the path or where toolkits are."""
    places = [shutil.which(name)] + sorted(glob.glob(f"/usr/local/cuda*/bin/{name}") + glob.glob(f"/opt/nvidia/*/{name}")
                                           + glob.glob(f"/opt/nvidia/*/*/{name}"))
    return next((place for place in places if place), None)


def devices(run: Run) -> list[str]:
    """Lines of `millrace devices --plain`; none without a device."""
    code, output = run.command([run.place.program("millrace"), "devices", "--plain"], 60)
    return [line for line in output.splitlines() if re.match(r"\d+ \d+\.\d ", line)] if code == 0 else []


def arguments(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", help="folder that scripts/gpu-bundle made; otherwise a build folder is used")
    parser.add_argument("--build", help="build folder (default: build/cuda)")
    parser.add_argument("--out", help="folder for the log and the summary")
    parser.add_argument("--limit", type=float, default=7200, help="seconds for everything")
    parser.add_argument("--only", nargs="+", default=[], help="parts, as regular expressions")
    parser.add_argument("--require-device", action="store_true", help="fail when there is no CUDA device")
    return parser
