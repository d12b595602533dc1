#!/usr/bin/env python3
"""`millrace gateway` and `millrace cell` apart, as in a cluster: probes of the cell, and ends that cut nothing.

Standard library only. MILLRACE_BIN names the executable; the model is models/sample.
"""

import contextlib
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from service import BIN, MODEL, Service, greedy, wait_for

LONG = 3000  # tokens: some seconds on a quick machine


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Process:
    """One command with its log, and an HTTP port."""

    def __init__(self, folder: str, port: int, *arguments: str):
        self.port = port
        self.log = pathlib.Path(folder) / f"{arguments[0]}.log"
        self.environment = {**os.environ, "TMPDIR": folder}
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen([BIN, *arguments], stdout=log, stderr=log, env=self.environment)

    connect, get, post, stream = Service.connect, Service.get, Service.post, Service.stream

    def probe(self, name: str) -> tuple[int, dict]:
        assert self.process.poll() is None, self.log.read_text()[-3000:]
        try:
            status, body = self.get(f"/health/{name}")
        except OSError:
            return 0, {}
        return status, json.loads(body)

    def drain(self, *more: str) -> subprocess.Popen:
        return subprocess.Popen([BIN, "drain", "--url", f"http://127.0.0.1:{self.port}", *more], stderr=subprocess.PIPE,
                                text=True, env=self.environment)

    def end(self, limit_s: float = 150) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(limit_s)


class Asker(threading.Thread):
    """One long stream: its tokens, and whether it ended by itself."""

    def __init__(self, gateway: Process, tokens: int = LONG):
        super().__init__(daemon=True)
        self.gateway, self.wanted = gateway, tokens
        self.tokens = 0
        self.whole = False
        self.start()
        wait_for("the first token", lambda: self.tokens > 0 or not self.is_alive())

    def run(self):
        for event in self.gateway.stream("/v1/completions", greedy(self.wanted)):
            self.whole = event == "[DONE]" and self.tokens == self.wanted
            if isinstance(event, dict) and event.get("choices"):
                self.tokens += len(event["choices"][0].get("token_ids") or [])

    def running(self) -> bool:
        return 0 < self.tokens < self.wanted


class CellLife(unittest.TestCase):
    def setUp(self):
        self.folder = self.enterContext(tempfile.TemporaryDirectory())
        self.cells_port = free_port()
        self.started: list[Process] = []
        self.addCleanup(self.kill_all)

    def kill_all(self):
        for one in self.started:
            with contextlib.suppress(ProcessLookupError):
                one.process.kill()
            one.process.wait()

    def start(self, port: int, command: str, *arguments: str) -> Process:
        self.started.append(Process(self.folder, port, command, "--model", MODEL, *arguments))
        return self.started[-1]

    def gateway(self, *more: str) -> Process:
        port = free_port()
        return self.start(port, "gateway", "--port", str(port), "--set", f"gateway.cell_port={self.cells_port}", *more)

    def cell(self, *more: str) -> Process:
        port = free_port()
        return self.start(port, "cell", "--set", f"cell.gateways=[127.0.0.1:{self.cells_port}]", "--set",
                          f"cell.health_port={port}", "--set", "cache.kv_tokens=32768", "--set", "deadlines.drain_ms=120000", *more)

    def both(self, *more: str) -> tuple[Process, Process]:
        gateway, cell = self.gateway(), self.cell(*more)
        wait_for("the gateway", lambda: gateway.probe("ready")[0] == 200)
        return gateway, cell

    def start_of(self, cell: Process) -> dict:
        """What the cell's own metrics say of its start. They are these alone: a gateway's would count twice."""
        status, text = cell.get("/metrics")
        self.assertEqual(status, 200)
        self.assertEqual(set(re.findall(r"^# TYPE (\S+)", text, re.M)),
                         {"millrace_cell_start_state", "millrace_cell_loaded_ratio", "millrace_cell_starts_total"})
        values = {name + labels.replace("cell=", ""): float(value)
                  for name, labels, value in re.findall(r"^(\w+)\{cell=\"[^\"]*\"(.*)\} (\S+)$", text, re.M)}
        states = [name.split('"')[1] for name, value in values.items() if "start_state" in name and value == 1]
        self.assertEqual(len(states), 1, text)
        return {"state": states[0], "loaded": values["millrace_cell_loaded_ratio"], "starts": values["millrace_cell_starts_total"]}

    def test_probes_tell_starting_linked_and_alive_apart(self):
        cell = self.cell()
        wait_for("the cell answers", lambda: cell.probe("live")[0] == 200)
        wait_for("its ranks", lambda: cell.probe("started")[0] == 200)
        status, body = cell.probe("ready")
        self.assertEqual((status, body["status"], body["reason"]), (503, "not_ready", "no gateway is linked"))
        gateway = self.gateway()
        wait_for("ready", lambda: cell.probe("ready")[0] == 200)
        status, body = cell.probe("ready")
        self.assertEqual((body["phase"], body["gateways"], body["restarts"], body["loaded"]), ("ready", 1, 0, 1.0))
        self.assertEqual(json.loads(cell.get("/health")[1])["status"], "ready")
        self.assertEqual(self.start_of(cell), {"state": "ready", "loaded": 1.0, "starts": 1.0})

        # The gateway goes: not ready, and no reason to end the cell. The ranks go: they come back by themselves.
        self.assertEqual(gateway.end(), 0)
        wait_for("not ready", lambda: cell.probe("ready")[1].get("reason") == "no gateway is linked")
        self.assertEqual([cell.probe(p)[0] for p in ("live", "started")], [200, 200])
        ranks = Service.ranks(cell)
        os.kill(ranks[-1], signal.SIGKILL)
        wait_for("a restart", lambda: cell.probe("live")[1].get("restarts") == 1)
        self.assertEqual(cell.probe("started")[0], 200)
        wait_for("up again", lambda: cell.probe("ready")[1].get("phase") == "ready")
        self.assertEqual(self.start_of(cell), {"state": "ready", "loaded": 1.0, "starts": 2.0})
        self.assertEqual(cell.end(), 0)

    def test_sigterm_lets_a_cell_finish_what_it_has(self):
        gateway, cell = self.both()
        askers = [Asker(gateway) for _ in range(4)]
        # Others ask all the time: they are served or refused, never cut.
        statuses, stop = [], threading.Event()

        def ask():
            while not stop.is_set():
                statuses.append(gateway.post("/v1/completions", greedy(8))[0])
                time.sleep(0.02)  # refusals are quick, and the cell needs its cores

        others = [threading.Thread(target=ask, daemon=True) for _ in range(4)]
        for other in others:
            other.start()
        wait_for("others", lambda: len(statuses) > 8)
        self.assertTrue(all(a.running() for a in askers))
        cell.process.send_signal(signal.SIGTERM)
        wait_for("draining", lambda: cell.probe("ready")[1].get("reason") == "draining")
        self.assertEqual(cell.probe("live")[0], 200)
        self.assertEqual(cell.process.wait(150), 0, cell.log.read_text()[-3000:])
        stop.set()
        for thread in [*askers, *others]:
            thread.join(30)
        self.assertTrue(all(a.whole for a in askers), [a.tokens for a in askers])
        self.assertEqual(set(statuses), {200, 503})
        self.assertEqual(gateway.end(), 0)

    def test_the_command_waits_until_a_cell_has_drained(self):
        gateway, cell = self.both()
        asker = Asker(gateway)
        drain = cell.drain()
        self.assertEqual(drain.wait(150), 0, drain.stderr.read())
        self.assertEqual(cell.process.wait(20), 0)
        asker.join(30)
        self.assertTrue(asker.whole)
        self.assertNotEqual(cell.drain().wait(20), 0)  # nobody is there any more

    def test_what_takes_too_long_is_cut_and_that_is_told_and_goes_on_in_the_next_cell(self):
        gateway, cell = self.both("--set", "deadlines.drain_ms=200")
        asker = Asker(gateway)
        drain = cell.drain()
        self.assertEqual(drain.wait(60), 1)
        self.assertIn("deadlines.drain_ms", drain.stderr.read())
        self.assertEqual(cell.process.wait(20), 1)
        self.assertTrue(asker.running())
        self.cell()
        asker.join(60)
        self.assertTrue(asker.whole)

    def test_a_gateway_pauses_before_it_refuses(self):
        gateway, cell = self.both()
        asker = Asker(gateway)
        drain = gateway.drain("--pause-ms", "1500")
        wait_for("announced", lambda: gateway.probe("ready")[0] == 503)
        self.assertEqual(gateway.post("/v1/completions", greedy(4))[0], 200)
        self.assertEqual(drain.wait(60), 0, drain.stderr.read())
        self.assertEqual(gateway.process.wait(20), 0)
        asker.join(30)
        self.assertTrue(asker.whole)

    def test_only_the_servers_user_may_drain(self):
        gateway, cell = self.both()
        tokens = {server: pathlib.Path(self.folder) / f"millrace-drain-{server.port}" for server in (gateway, cell)}
        for server, token in tokens.items():
            for headers in ({}, {"Authorization": "Bearer 0"}):
                with contextlib.closing(server.connect()) as connection:
                    connection.request("POST", "/drain", "{}", {"Content-Type": "application/json", **headers})
                    self.assertEqual(connection.getresponse().status, 403)
            self.assertEqual(token.stat().st_mode & 0o777, 0o600)
            with contextlib.closing(server.connect()) as connection:
                connection.request("POST", "/drain?pause_ms=-1", "{}", {
                    "Content-Type": "application/json", "Authorization": "Bearer " + token.read_text()})
                self.assertEqual(connection.getresponse().status, 400)
        for server in tokens:  # the cell's status is a second old at most
            wait_for("not drained", lambda server=server: server.probe("ready")[0] == 200)
        for server, token in tokens.items():
            self.assertEqual(server.end(), 0)
            self.assertFalse(token.exists())


if __name__ == "__main__":
    unittest.main(verbosity=2)
