#!/usr/bin/env python3
"""The status page's data and who may see it, against the real command.

Standard library only. MILLRACE_BIN names the executable; the model is models/sample.
"""

import contextlib
import fcntl
import html.parser
import http.client
import json
import os
import pathlib
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from service import BIN, ROOT, Service, greedy, wait_for

FIELDS = re.findall(r"^\| `(\S+)` \| ([\w ]+) \| (\S*?) ?\|", (ROOT / "docs/status.md").read_text(), re.MULTILINE)
KINDS = {"text": str, "count": int, "flag": bool, "number": (int, float)}


def fetch(port: int, path: str, method: str = "GET", **headers) -> tuple[int, dict, bytes]:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        response = connection.getresponse()
        return response.status, {k.lower(): v for k, v in response.getheaders()}, response.read()


def status_of(service: Service) -> dict:
    code, _, body = fetch(service.port, "/status.json")
    assert code == 200, body
    return json.loads(body)


def leaves(value, path: str = ""):
    """(path, value) of everything that is not an object; cells[].id for all of them alike."""
    if isinstance(value, dict):
        for name, part in value.items():
            yield from leaves(part, f"{path}.{name}" if path else name)
    elif isinstance(value, list):
        for part in value or [[]]:
            if part == []:
                continue
            yield from leaves(part, f"{path}[]")
    else:
        yield path, value


def load(service: Service, requests: int, tokens: int) -> list[dict]:
    """The usage of each request; two at a time."""
    usages: list[dict] = []

    def ask():
        for _ in range(requests // 2):
            code, answer = service.post("/v1/completions", greedy(tokens))
            assert code == 200, answer
            usages.append(answer["usage"])

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return usages


class Data(unittest.TestCase):
    """Figures after a load that is known."""

    @classmethod
    def setUpClass(cls):
        cls.service = Service("--embedded", "--stages", "2", "--lanes", "2")
        cls.usages = load(cls.service, 16, 48)

    @classmethod
    def tearDownClass(cls):
        assert cls.service.stop() == 0, cls.service.output()

    def test_counts_are_those_of_the_clients(self):
        asked = len(self.usages)
        generated = sum(u["completion_tokens"] for u in self.usages)
        wait_for("the last answer", lambda: status_of(self.service)["totals"]["length"] == asked)
        s = status_of(self.service)
        self.assertEqual(s["totals"]["generated_tokens"], generated)
        self.assertEqual(s["totals"]["prompt_tokens"], sum(u["prompt_tokens"] for u in self.usages))
        self.assertEqual((s["totals"]["stop"], s["totals"]["abort"], s["totals"]["error"]), (0, 0, 0))
        self.assertEqual(s["errors"]["failed"] + s["errors"]["rejected"], 0)
        self.assertEqual(s["service"]["model"], "sample")
        self.assertEqual(s["queue"]["waiting_limit"], 256)
        expected = {"ttft": asked, "itl": generated - asked, "e2e": asked, "queue": asked}
        for part, total in expected.items():
            self.assertLessEqual(s["latency"][part]["count"], total)
        if s["service"]["uptime_s"] > 58:
            self.skipTest("the machine is slow: some of the load is older than the window of 60 s")
        self.assertEqual({part: s["latency"][part]["count"] for part in expected}, expected)
        for part in ("ttft", "itl", "e2e"):
            q = s["latency"][part]
            self.assertTrue(0 < q["p50_ms"] <= q["p90_ms"] <= q["p99_ms"], q)
        self.assertLessEqual(s["latency"]["itl"]["p50_ms"], s["latency"]["e2e"]["p50_ms"])
        # Second after second, all tokens of the last minute.
        self.assertAlmostEqual(sum(s["history"]["generated_tokens_per_s"]), generated, delta=generated / 2)

    def test_every_worker_of_the_grid_reports_and_loads_add_up(self):
        def both(s):
            workers = s["cells"][0]["workers"]
            reports = len(workers) == 4 and all(w["expert_load_ratio"] is not None for w in workers)
            # The rates are those of the last seconds: a busy machine may have given a worker none of them.
            return reports and all(w["expert_rows_per_s"] > 0 and w["busy_ratio"] > 0 for w in workers) and s

        stop = threading.Event()
        clients = threading.Thread(target=lambda: [load(self.service, 2, 64) for _ in iter(stop.is_set, True)])
        clients.start()
        try:
            s = wait_for("all workers under load", lambda: both(status_of(self.service)))
        finally:
            stop.set()
            clients.join()
        cell = s["cells"][0]
        self.assertEqual((cell["state"], cell["stages"], cell["lanes"], cell["epoch"]), ("healthy", 2, 2, cell["epoch"]))
        self.assertEqual((cell["backend"], cell["transport"]), ("cpu", "threads"))
        text = self.service.get("/metrics")[1]
        self.assertRegex(text, r'millrace_cell_start_state\{cell="[^"]+",state="ready"\} 1\n')
        self.assertRegex(text, r'millrace_cell_loaded_ratio\{cell="[^"]+"\} 1\n')
        self.assertEqual([(w["stage"], w["lane"]) for w in cell["workers"]], [(0, 0), (0, 1), (1, 0), (1, 1)])
        self.assertGreater(cell["generated_tokens_per_s"], 0)
        self.assertGreater(cell["steps_per_s"], 0)
        layers = set()
        for stage in (0, 1):
            pair = [w for w in cell["workers"] if w["stage"] == stage]
            self.assertEqual(pair[0]["first_moe_layer"], pair[1]["first_moe_layer"])
            layers |= {pair[0]["first_moe_layer"] + i for i in range(len(pair[0]["layer_load_ratio"]))}
            for one, other in zip(pair[0]["layer_load_ratio"], pair[1]["layer_load_ratio"]):
                self.assertAlmostEqual(one + other, 2, places=2)  # shares of two lanes: 1 is even
            for w in pair:
                self.assertGreater(w["expert_rows_per_s"], 0)
                self.assertGreater(w["busy_ratio"], 0)
                self.assertTrue(0 <= w["exchange_ratio"] + w["pipeline_wait_ratio"] <= w["busy_ratio"] + 0.002 <= 1.002, w)
        self.assertEqual(layers, set(range(2, 10)))  # the sample model's MoE layers

    def test_fields_are_the_documented_ones(self):
        documented = {path: (kind, unit) for path, kind, unit in FIELDS}
        self.assertGreater(len(documented), 60)
        wait_for("a report", lambda: len(status_of(self.service)["cells"][0]["workers"]) == 4)
        seen = dict(leaves(status_of(self.service)))
        self.assertEqual(set(seen), set(documented) - {path for path in documented if path.startswith("cells[].imbalance[]")
                                                      and path not in seen})
        for path, value in seen.items():
            kind, unit = documented[path]
            if value is None:
                self.assertTrue(kind.endswith(" or null"), path)
                continue
            self.assertIsInstance(value, KINDS[kind.removesuffix(" or null")], path)
            ending = re.search(r"_(s|ms|ratio|tokens)(\[\])?$", path)
            if ending and "per_s" not in path:
                self.assertEqual(unit, {"ratio": "1"}.get(ending.group(1), ending.group(1)), path)

    def test_any_number_of_viewers_sees_one_text_a_second(self):
        texts, end = set(), time.monotonic() + 3
        asked = 0
        while time.monotonic() < end:
            texts.add(fetch(self.service.port, "/status.json")[2])
            asked += 1
        self.assertGreater(asked, 10)
        self.assertLessEqual(len(texts), 5)


class Restart(unittest.TestCase):
    """A cell that dies and comes back."""

    def test_a_lost_cell_is_shown_as_gone_and_then_with_its_next_epoch(self):
        # A pause longer than the second between two texts, so that the loss is in one.
        service = Service("--stages", "1", "--lanes", "2", "--set", "cell.restart_backoff_min_ms=3000")
        try:
            before = wait_for("the cell is shown", lambda: status_of(service)["cells"])[0]
            os.kill(service.ranks()[-1], signal.SIGKILL)

            def gone():
                s = status_of(service)
                return s["cells"][0]["state"] == "gone" and s
            s = wait_for("the loss", gone)
            self.assertTrue(s["cells"][0]["reason"])
            self.assertEqual((s["service"]["ready"], s["service"]["reason"]), (False, "no cell is connected"))

            def back():
                cell = status_of(service)["cells"][0]
                return cell["state"] == "healthy" and cell["epoch"] > before["epoch"] and cell
            cell = wait_for("the next epoch", back)
            self.assertEqual((cell["losses"], cell["restarts"]), (1, 1))
            self.assertEqual(len(status_of(service)["cells"]), 1)
        finally:
            self.assertEqual(service.stop(), 0)


class Screen:
    """`millrace top` in a terminal of its own."""

    def __init__(self, *args: str, rows: int = 40, columns: int = 100):
        self.master, self.terminal = pty.openpty()
        self.resize(rows, columns)
        self.before = termios.tcgetattr(self.terminal)
        self.bytes = b""
        self.process = subprocess.Popen([BIN, "top", *args], stdin=self.terminal, stdout=self.terminal, stderr=self.terminal,
                                        env={**os.environ, "LC_ALL": "C.UTF-8"}, start_new_session=True,
                                        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0))

    def resize(self, rows: int, columns: int):
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def read(self) -> str:
        """All that was written so far."""
        while select.select([self.master], [], [], 0)[0]:
            self.bytes += os.read(self.master, 65536)
        return self.bytes.decode(errors="replace")

    def frame(self) -> list[str]:
        """The newest whole frame's lines, without colors."""
        frames = self.read().split("\x1b[H")
        if len(frames) < 3:
            return []
        return [line.rstrip() for line in re.sub(r"\x1b\[[\d;?]*\w", "", frames[-2]).split("\r\n")]

    def showing(self, text: str) -> list[str]:
        return wait_for(f"'{text}' on the screen", lambda: any(text in line for line in self.frame()) and self.frame())

    def press(self, keys: str):
        os.write(self.master, keys.encode())

    def end(self) -> int:
        """Its exit status; the terminal must be as it was."""
        wait_for("the end of top", lambda: self.read() and self.process.poll() is not None)
        self.last_words = self.read().rpartition("\x1b[?25h\x1b[?1049l")[2]
        assert "\x1b" not in self.last_words, self.last_words
        assert termios.tcgetattr(self.terminal) == self.before
        os.close(self.master)
        os.close(self.terminal)
        return self.process.returncode


def top_once(*args: str) -> subprocess.CompletedProcess:
    return subprocess.run([BIN, "top", "--once", *args], capture_output=True, text=True, timeout=60)


class Top(unittest.TestCase):
    """The same figures in a terminal."""

    @classmethod
    def setUpClass(cls):
        cls.service = Service("--embedded", "--stages", "2", "--lanes", "2")
        cls.usages = load(cls.service, 4, 16)
        cls.url = f"http://127.0.0.1:{cls.service.port}"
        wait_for("reports", lambda: [len(cell["workers"]) for cell in status_of(cls.service)["cells"]] == [4])

    @classmethod
    def tearDownClass(cls):
        assert cls.service.stop() == 0, cls.service.output()

    def test_one_look_has_what_status_json_says(self):
        wait_for("the last answer", lambda: status_of(self.service)["totals"]["length"] >= len(self.usages))
        done = top_once("--url", self.url)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertNotIn("\x1b", done.stdout)  # no terminal, no colors
        s = status_of(self.service)
        cell = s["cells"][0]
        lines = done.stdout.splitlines()
        self.assertRegex(lines[0], rf"^millrace sample {re.escape(s['service']['version'])}, up .*  Ready +{self.url}$")
        self.assertIn(f"Running 0 of {cell['max_sequences']}", done.stdout)
        self.assertIn(f"0 of {s['load']['kv_tokens']:,} tokens", done.stdout)
        self.assertRegex(done.stdout, rf"{cell['id']} healthy  epoch {cell['epoch']}, heard [\d.]+ s ago")
        self.assertRegex(done.stdout, r"stage 0 .*\d+% .*\d+% ")
        self.assertIn(" lane 1", done.stdout)
        counts = {m[1]: int(m[2]) for m in re.finditer(r"^(First token|Whole answer) .* (\d+)$", done.stdout, re.MULTILINE)}
        asked = len(self.usages)
        if s["latency"]["e2e"]["count"] == asked:  # no longer, a minute after the load
            self.assertEqual(counts, {"First token": asked, "Whole answer": asked})

    def test_a_terminal_is_filled_scrolled_and_given_back(self):
        screen = Screen("--url", self.url, "--interval-s", "0.2")
        lines = screen.showing("stage 1")
        self.assertEqual(len(lines), 40)
        self.assertIn("lane 1", "".join(lines))
        screen.resize(14, 60)  # a signal tells it
        screen.showing("more lines")
        self.assertLessEqual(len(screen.frame()), 14)
        screen.press("jjj\x1b[B\x1b[6~ ")
        wait_for("the end of the list", lambda: not any("more lines" in line for line in screen.frame()))
        screen.press("\x1b[A\x1b[5~kkkkkk")
        screen.showing("Workers:")
        screen.press("q")
        self.assertEqual(screen.end(), 0)

    def test_signals_leave_the_terminal_in_order(self):
        for end in (lambda s: s.press("\x03"), lambda s: s.process.terminate()):
            screen = Screen("--url", self.url)
            screen.showing("healthy")
            end(screen)
            self.assertEqual(screen.end(), 0)

    def test_a_gateway_that_goes_is_asked_again(self):
        service = Service("--embedded")
        port = service.port
        screen = Screen("--url", f"http://127.0.0.1:{port}", "--interval-s", "0.2")
        screen.showing("Ready")
        self.assertEqual(service.stop(), 0)
        lines = screen.showing("trying again")
        self.assertRegex(lines[1], r"^Figures from \d+ s ago: ")
        service = Service("--embedded", "--set", f"gateway.port={port}")
        try:
            wait_for("new figures", lambda: screen.frame() and screen.frame()[1] == "" and "Ready" in screen.frame()[0])
            screen.press("q")
            self.assertEqual(screen.end(), 0)
        finally:
            self.assertEqual(service.stop(), 0)

    def test_what_cannot_be_asked_is_said(self):
        guarded = Service("--embedded", "--set", 'gateway.api_keys=["first"]')
        url = f"http://127.0.0.1:{guarded.port}"
        try:
            done = top_once("--url", url)
            self.assertEqual((done.returncode, done.stdout), (1, ""))
            self.assertIn("--api-key", done.stderr)
            self.assertEqual(top_once("--url", url, "--api-key", "first").returncode, 0)
            screen = Screen("--url", url)
            self.assertEqual(screen.end(), 1)
            self.assertIn("--api-key", screen.last_words)
        finally:
            self.assertEqual(guarded.stop(), 0)
        done = top_once("--url", url)  # nobody listens there now
        self.assertEqual((done.returncode, done.stdout), (1, ""))
        self.assertIn("refused", done.stderr)
        for bad, field in (("ftp://h", "url"), ("http://h:x", "url")):
            done = top_once("--url", bad)
            self.assertEqual(done.returncode, 2, bad)
            self.assertIn(field, done.stderr)


class Inline(html.parser.HTMLParser):
    """What a strict policy forbids in a page, and where it points."""

    def __init__(self, text: str):
        super().__init__()
        self.found: list[str] = []
        self.links: list[str] = []
        self.tag = ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tag = tag
        for name, value in attributes:
            if name == "style" or name.startswith("on"):
                self.found.append(f"{tag} {name}")
            if name in ("src", "href"):
                self.links.append(value)

    def handle_data(self, data):
        if self.tag in ("script", "style") and data.strip():
            self.found.append(self.tag)


class Access(unittest.TestCase):
    """Headers, caching, and API keys."""

    @classmethod
    def setUpClass(cls):
        cls.open = Service("--embedded")
        cls.guarded = Service("--embedded", "--set", 'gateway.api_keys=["first", "second"]')

    @classmethod
    def tearDownClass(cls):
        assert cls.open.stop() == 0 and cls.guarded.stop() == 0

    def test_the_page_and_all_it_names_are_served_strictly(self):
        code, headers, body = fetch(self.open.port, "/status")
        self.assertEqual((code, headers["content-type"]), (200, "text/html; charset=utf-8"))
        page = Inline(body.decode())
        self.assertEqual(page.found, [])
        names = {p.name for p in (ROOT / "net/status_page").iterdir()}
        self.assertTrue(all(re.fullmatch(r"status[/.][\w.]+|#[\w-]+", link) for link in page.links), page.links)
        kinds = {".html": "text/html; charset=utf-8", ".css": "text/css; charset=utf-8",
                 ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}
        for name in names:
            path = "/status" if name == "index.html" else f"/status/{name}"
            code, headers, body = fetch(self.open.port, path)
            self.assertEqual((code, headers["content-type"]), (200, kinds[pathlib.Path(name).suffix]), name)
            self.assertEqual(body, (ROOT / "net/status_page" / name).read_bytes(), name)
            self.check_policy(headers)
            self.assertEqual(headers["cache-control"], "no-cache")
            tag = headers["etag"]
            for known in (tag, f'W/{tag}', f'"x", {tag}', "*"):
                code, headers, rest = fetch(self.open.port, path, If_None_Match=known)
                self.assertEqual((code, rest, headers["etag"]), (304, b"", tag))
                self.assertNotIn("content-length", headers)
            self.assertEqual(fetch(self.open.port, path, If_None_Match='"old"')[0], 200)
            code, headers, rest = fetch(self.open.port, path, "HEAD")
            self.assertEqual((code, rest, int(headers["content-length"])), (200, b"", len(body)))
        code, headers, _ = fetch(self.open.port, "/status.json")
        self.assertEqual((headers["content-type"], headers["cache-control"]), ("application/json", "no-store"))
        self.check_policy(headers)

    def check_policy(self, headers: dict):
        policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
        self.assertEqual(policy["default-src"], "'none'")
        self.assertEqual(policy["frame-ancestors"], "'none'")
        for rule in policy.values():
            self.assertIn(rule, ("'none'", "'self'"))
        self.assertEqual(headers["x-content-type-options"], "nosniff")
        self.assertEqual(headers["referrer-policy"], "no-referrer")

    def test_other_paths(self):
        for path, target in (("/", "status"), ("/status/", "../status")):
            code, headers, _ = fetch(self.open.port, path)
            self.assertEqual((code, headers["location"]), (307, target))
        for path in ("/status/nothing", "/status/../status.json", "/status/style.css/", "/status/%2e%2e/config"):
            self.assertEqual(fetch(self.open.port, path)[0], 404, path)
        self.assertEqual(fetch(self.open.port, "/status.json", "POST")[0], 405)

    def test_keys_guard_the_data_and_not_the_page(self):
        port = self.guarded.port
        for path in ("/status", "/status/main.js", "/"):
            self.assertIn(fetch(port, path)[0], (200, 307), path)
        code, _, body = fetch(port, "/status.json")
        self.assertEqual((code, json.loads(body)["error"]["code"]), (401, "invalid_api_key"))
        self.assertEqual(fetch(port, "/status.json", Authorization="Bearer wrong")[0], 401)
        self.assertEqual(fetch(port, "/status.json", Authorization="Bearer second")[0], 200)
        self.assertEqual(fetch(port, "/status.json", x_api_key="first")[0], 200)


if __name__ == "__main__":
    unittest.main(verbosity=2)
