"""`millrace serve` as a process, and what tests ask of it and of its processes.

Standard library only. MILLRACE_BIN names the executable; the model is models/sample.
"""

import contextlib
import http.client
import json
import os
import pathlib
import re
import signal
import subprocess
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
BIN = os.environ.get("MILLRACE_BIN", str(ROOT / "build/cpu/bin/millrace"))
MODEL = str(ROOT / "models/sample")
PROMPT = "In the beginning God created"


def processes_of(pid: int) -> set[int]:
    """pid and all its descendants."""
    children: dict[int, list[int]] = {}
    for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            text = stat.read_text()
        except OSError:
            continue
        fields = text.rsplit(")", 1)[1].split()
        children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found, todo = set(), [pid]
    while todo:
        one = todo.pop()
        found.add(one)
        todo += children.get(one, [])
    return found


def alive(pid: int) -> bool:
    try:
        text = pathlib.Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return text.rsplit(")", 1)[1].split()[0] != "Z"


def command_line(pid: int) -> list[str]:
    try:
        return pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
    except OSError:
        return []


def wait_for(what: str, condition, limit_s: float = 60):
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.02)
    raise AssertionError(f"{what}: not within {limit_s} s")


class Process:
    """A command with its output collected."""

    def __init__(self, command: list[str]):
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.lines: list[str] = []
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        with self.process.stdout as output:
            for line in output:
                self.lines.append(line.rstrip("\n"))

    def output(self) -> str:
        return "\n".join(self.lines)

    def stop(self, number=signal.SIGTERM, limit_s: float = 60) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(limit_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError("did not end:\n" + self.output()) from None


class Service(Process):
    """`millrace serve` of the sample model; at the URL that it prints."""

    def __init__(self, *arguments: str, ready: bool = True):
        super().__init__([BIN, "serve", "--model", MODEL, "--port", "0", "--set", "gateway.cell_port=0", *arguments])
        self.port = 0
        if ready:
            self.port = int(wait_for("the URL", self._url))

    def _url(self):
        if self.process.poll() is not None:
            raise AssertionError("serve ended:\n" + self.output())
        found = re.search(r"serves \S+ at http://\S+:(\d+)", self.output())
        return found and found.group(1)

    def ranks(self) -> list[int]:
        """The worker processes, mpirun's children."""
        return sorted(p for p in processes_of(self.process.pid) if command_line(p)[1:2] == ["worker"])

    def connect(self, timeout: float = 60) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)

    def get(self, path: str) -> tuple[int, str]:
        with contextlib.closing(self.connect()) as connection:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()

    def post(self, path: str, body: dict) -> tuple[int, dict]:
        with contextlib.closing(self.connect()) as connection:
            connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
            response = connection.getresponse()
            return response.status, json.loads(response.read())

    def stream(self, path: str, body: dict):
        """Yields the objects of a stream's data events, then "[DONE]"."""
        with contextlib.closing(self.connect()) as connection:
            connection.request("POST", path, json.dumps({**body, "stream": True}),
                               {"Content-Type": "application/json"})
            with connection.getresponse() as response:
                assert response.status == 200, response.read()
                for raw in response:
                    line = raw.decode().rstrip("\r\n")
                    if line.startswith("data: "):
                        data = line[len("data: "):]
                        yield data if data == "[DONE]" else json.loads(data)

    def metric(self, name: str) -> float:
        total = 0.0
        for line in self.get("/metrics")[1].splitlines():
            if re.match(re.escape(name) + r"(\{| )", line):
                total += float(line.rsplit(" ", 1)[1])
        return total

    def ready(self) -> bool:
        return self.get("/health/ready")[0] == 200


def greedy(max_tokens: int = 32, **more) -> dict:
    return {"model": "sample", "prompt": PROMPT, "max_tokens": max_tokens, "temperature": 0,
            "ignore_eos": True, "return_token_ids": True, **more}
