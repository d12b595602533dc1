#!/usr/bin/env python3
"""A cell over two nodes: `serve` leads in one network namespace, `node-agent` waits in another.

Each node has one end of a veth pair, a host name and a /dev/shm of its own; nothing leaves them. Needs
root and ip netns, and skips with a reason where that is not allowed. Standard library only.
"""

import contextlib
import ctypes
import json
import os
import pathlib
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from service import BIN, MODEL, PROMPT, Process, Service, alive, command_line, greedy, processes_of, wait_for

LEADER, OTHER = f"mr{os.getpid()}a", f"mr{os.getpid()}b"
ADDRESS = {LEADER: "10.77.0.1", OTHER: "10.77.0.2"}
SHARED_MEMORY: dict[str, pathlib.Path] = {}
CLONE_NEWNET = 0x40000000


def ip(*arguments: str):
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


def make_namespaces():
    links = {LEADER: f"v{os.getpid()}a", OTHER: f"v{os.getpid()}b"}
    for name in links:
        ip("netns", "add", name)
    ip("link", "add", links[LEADER], "netns", LEADER, "type", "veth", "peer", links[OTHER], "netns", OTHER)
    for name, link in links.items():
        ip("-n", name, "addr", "add", ADDRESS[name] + "/24", "dev", link)
        ip("-n", name, "link", "set", "lo", "up")
        ip("-n", name, "link", "set", link, "up")


def remove_namespaces():
    for name in (LEADER, OTHER):
        subprocess.run(["ip", "netns", "del", name], capture_output=True)


def inside(name: str, *command: str) -> list[str]:
    """The command on a node. Open MPI tells nodes apart by their host names. (ip netns exec gives each
    command mounts of its own.)"""
    script = 'mount --bind "$1" /dev/shm; hostname "$0"; shift; exec "$@"'
    return ["ip", "netns", "exec", name, "unshare", "--uts", "sh", "-ec", script, name, str(SHARED_MEMORY[name]),
            *command]


def processes_in(name: str) -> list[int]:
    output = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True).stdout
    return [int(p) for p in output.split() if alive(int(p))]


def ranks_in(name: str) -> list[int]:
    return [p for p in processes_in(name) if command_line(p)[1:2] == ["worker"]]


@contextlib.contextmanager
def network_of(name: str):
    """Sockets that this thread opens belong to the namespace; they stay there."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open("/proc/thread-self/ns/net") as own, open(f"/run/netns/{name}") as other:
        if libc.setns(other.fileno(), CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "setns")
        try:
            yield
        finally:
            libc.setns(own.fileno(), CLONE_NEWNET)


class Leader(Process):
    """`serve` in the leader's namespace; requests go there from this process."""

    def __init__(self, config: str):
        super().__init__(inside(LEADER, BIN, "serve", "--config", config))
        self.port = 0

    def wait_until_ready(self, limit_s: float = 90):
        def url():
            if self.process.poll() is not None:
                raise AssertionError("serve ended:\n" + self.output())
            return re.search(r"serves \S+ at http://127\.0\.0\.1:(\d+)", self.output())
        self.port = int(wait_for("the URL", url, limit_s).group(1))

    # Requests as in service.py, from inside the namespace.
    def connect(self, timeout: float = 60):
        with network_of(LEADER):
            connection = Service.connect(self, timeout)
            connection.connect()
        return connection

    get, post, metric, ready = Service.get, Service.post, Service.metric, Service.ready

    def tokens(self, **more) -> list[int]:
        status, body = self.post("/v1/completions", greedy(24, **more))
        assert status == 200, body
        return body["choices"][0]["token_ids"]


class Agent(Process):
    def __init__(self, config: str):
        super().__init__(inside(OTHER, BIN, "node-agent", "--config", config))
        try:
            wait_for("the agent", lambda: "leaders may dial" in self.output(), 20)
        except AssertionError as e:
            self.process.kill()
            raise AssertionError(f"{e}\n{self.output()}") from None


SEEDED = {"temperature": 0.9, "top_p": 0.95, "seed": 11}


class MultiNode(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        if os.geteuid() != 0:
            raise unittest.SkipTest("network namespaces need root")
        cls.folder = pathlib.Path(cls.enterClassContext(tempfile.TemporaryDirectory(dir="/tmp")))
        memory = cls.enterClassContext(tempfile.TemporaryDirectory(dir="/dev/shm"))
        for name in (LEADER, OTHER):
            SHARED_MEMORY[name] = pathlib.Path(memory) / name
            SHARED_MEMORY[name].mkdir()
        try:
            make_namespaces()
            with network_of(OTHER):
                pass
            subprocess.run(inside(OTHER, "true"), check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as e:
            remove_namespaces()
            raise unittest.SkipTest(f"network namespaces are not permitted here: {e} "
                                    f"{getattr(e, 'stderr', '')}") from None
        cls.addClassCleanup(remove_namespaces)

    def setUp(self):
        self.secret = self.write("secret", secrets.token_hex(32) + "\n")
        self.config = self.configure("cluster.yaml", self.secret)
        self.started: list[Process] = []

    def tearDown(self):
        for process in reversed(self.started):
            with contextlib.suppress(AssertionError):
                process.stop()
        for name in (LEADER, OTHER):
            wait_for(f"no process in {name}", lambda: not processes_in(name), 20)
            self.assertEqual(list(SHARED_MEMORY[name].iterdir()), [], name)

    def write(self, name: str, text: str, mode: int = 0o600) -> str:
        path = self.folder / name
        path.write_text(text)
        path.chmod(mode)
        return str(path)

    def configure(self, name: str, secret: str) -> str:
        """JSON is YAML."""
        return self.write(name, json.dumps({
            "model": {"path": MODEL},
            "grid": {"stages": 2, "lanes": 2, "embedded": False},
            "cache": {"kv_tokens": 4096},
            "gateway": {"port": 0, "cell_port": 0},
            "deadlines": {"step_ms": 8000, "collective_ms": 6000, "drain_ms": 3000},
            "cell": {"hosts": [f"{ADDRESS[LEADER]}:2", ADDRESS[OTHER]], "network": "10.77.0.0/24",
                     "restart_backoff_min_ms": 50, "restart_backoff_max_ms": 1000},
            "node_agent": {"secret_file": secret, "timeout_ms": 4000},
        }))

    def start(self, kind, config: str):
        process = kind(config)
        self.started.append(process)
        return process

    def start_cell(self) -> tuple[Leader, Agent]:
        agent = self.start(Agent, self.config)
        leader = self.start(Leader, self.config)
        leader.wait_until_ready()
        return leader, agent

    def test_same_tokens_as_one_machine_and_nothing_left(self):
        leader, agent = self.start_cell()
        self.assertEqual((len(ranks_in(LEADER)), len(ranks_in(OTHER))), (3, 2))
        for name in (LEADER, OTHER):  # ranks of one node meet in its own memory
            self.assertTrue(list(SHARED_MEMORY[name].rglob("vader_segment*")), f"{name}\n{leader.output()}\n{agent.output()}")
        self.assertNotIn("shmem", leader.output() + agent.output())
        drawn, chosen = leader.tokens(**SEEDED), leader.tokens()
        _, whole = leader.post("/v1/completions", greedy(24))
        alone = subprocess.run([BIN, "generate", "--model", MODEL, "--temperature", "0", "-n", "24",
                                "--ignore-eos", PROMPT], capture_output=True, text=True, timeout=120, check=True)
        self.assertEqual(whole["choices"][0]["text"], alone.stdout.removesuffix("\n"))
        embedded = Service("--embedded", "--set", "cache.kv_tokens=4096")
        try:
            for more, got in [({}, chosen), (SEEDED, drawn)]:
                status, body = embedded.post("/v1/completions", greedy(24, **more))
                self.assertEqual(status, 200)
                self.assertEqual(got, body["choices"][0]["token_ids"])
        finally:
            embedded.stop()
        self.assertNotEqual(drawn, chosen)
        self.assertEqual(leader.stop(), 0, leader.output())
        wait_for("the node is free", lambda: not ranks_in(OTHER), 10)
        self.assertEqual(agent.stop(), 0, agent.output())

    def test_a_killed_mpirun_leaves_nothing_on_the_node_and_the_cell_returns(self):
        leader, agent = self.start_cell()
        expected = leader.tokens()
        old = [p for p in processes_in(OTHER) if p not in processes_of(agent.process.pid)] + ranks_in(OTHER)
        mpirun = [p for p in processes_in(LEADER) if command_line(p)[:1] == ["mpirun"]]
        self.assertEqual(len(mpirun), 1)
        os.kill(mpirun[0], signal.SIGKILL)
        wait_for("the node's processes end", lambda: not [p for p in old if alive(p)], 5)
        wait_for("the cell is back", lambda: leader.ready() and len(ranks_in(OTHER)) == 2, 60)
        self.assertEqual(leader.tokens(), expected)

    def test_a_killed_leader_leaves_nothing_on_the_node(self):
        leader, agent = self.start_cell()
        ranks = ranks_in(OTHER)
        self.assertEqual(len(ranks), 2)
        leader.process.kill()
        wait_for("the node's ranks end", lambda: not [p for p in ranks if alive(p)], 10)
        wait_for("its daemon too", lambda: not [p for p in processes_in(OTHER)
                                                if command_line(p)[:1] == ["orted"]], 5)
        self.assertIsNone(agent.process.poll())
        wait_for("the leader's processes end", lambda: not processes_in(LEADER), 20)
        for path in SHARED_MEMORY[LEADER].glob("millrace-cell-*"):  # the killed supervisor could not
            shutil.rmtree(path)

    def test_a_killed_agent_ends_the_cell_which_returns_with_it(self):
        leader, agent = self.start_cell()
        expected = leader.tokens(**SEEDED)
        ranks = ranks_in(OTHER)
        agent.stop(signal.SIGKILL)
        wait_for("its processes die with it", lambda: not [p for p in ranks if alive(p)], 5)
        wait_for("the cell is not ready", lambda: not leader.ready(), 20)
        self.start(Agent, self.config)  # removes the folder of the killed one as well
        wait_for("the cell is back", leader.ready, 60)
        self.assertEqual(leader.tokens(**SEEDED), expected)
        self.assertEqual(len(ranks_in(OTHER)), 2)

    def test_an_agent_that_is_told_to_end_waits_for_its_leader(self):
        """As pods of one cell are, all at once."""
        leader, agent = self.start_cell()
        agent.process.send_signal(signal.SIGTERM)
        wait_for("it waits", lambda: "waits for 1" in agent.output(), 10)
        self.assertEqual(len(leader.tokens()), 24)  # served on
        self.assertEqual(leader.stop(), 0, leader.output())
        self.assertEqual(agent.process.wait(15), 0, agent.output())

    def test_sigterm_to_the_agent_ends_its_ranks(self):
        leader, agent = self.start_cell()
        ranks = ranks_in(OTHER)
        begin = time.monotonic()
        self.assertEqual(agent.stop(limit_s=15), 0, agent.output())
        self.assertGreater(time.monotonic() - begin, 2.5)  # deadlines.drain_ms
        # A killed process has no environment any more, by which the agent knows it, before it is gone.
        wait_for("its ranks are gone", lambda: not [p for p in ranks if alive(p)], 5)
        wait_for("the cell is not ready", lambda: not leader.ready(), 20)

    def test_a_wrong_secret_is_refused(self):
        agent = self.start(Agent, self.config)
        wrong = self.configure("wrong.yaml", self.write("wrong", secrets.token_hex(32)))
        leader = self.start(Leader, wrong)
        wait_for("the refusal", lambda: "is node_agent.secret_file the same" in leader.output(), 30)
        wait_for("the agent's word", lambda: "refused" in agent.output(), 5)
        self.assertEqual(ranks_in(OTHER), [])
        self.assertNotRegex(agent.output(), r"daemon \d+ for")

    def test_only_the_daemon_is_started(self):
        agent = self.start(Agent, self.config)
        for command in [["touch", str(self.folder / "made")], ["orted", "--mca", "plm_rsh_agent"],
                        ["sh", "-c", "orted"]]:
            result = subprocess.run(inside(LEADER, BIN, "agent-exec", "--config", self.config, ADDRESS[OTHER],
                                           *command), capture_output=True, text=True, timeout=30)
            self.assertEqual(result.returncode, 255)
            self.assertIn("refused", result.stderr)
        self.assertFalse((self.folder / "made").exists())
        self.assertNotRegex(agent.output(), r"daemon \d+ for")

    def test_a_readable_secret_is_an_error(self):
        config = self.configure("open.yaml", self.write("open", secrets.token_hex(32), 0o644))
        result = subprocess.run([BIN, "node-agent", "--config", config], capture_output=True, text=True, timeout=30)
        self.assertEqual(result.returncode, 2)
        self.assertIn("node_agent.secret_file", result.stderr)
        self.assertIn("chmod 600", result.stderr)


if __name__ == "__main__":
    unittest.main(verbosity=2)
