#!/usr/bin/env python3
"""Bad input of every kind against the real command: each case has its answer, and harms nobody else.

HTTP: a status, an error object and a part of its message; then a good request, on a new connection and, where
HTTP allows, on the same one, must give Transformers' tokens (models/sample/reference.json; the KV cache is f32
so that they are comparable). Command line: an exit status and one line on standard error; then the intact model
must give those tokens too. Standard library only; MILLRACE_BIN names the executable.
"""

import contextlib
import json
import pathlib
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import bad_commands
import broken_checkpoints
from bad_requests import (BROKEN_HTTP, CHATS, CHUNKED, COMPLETIONS, GOOD, HARMLESS, HELLO, LENGTH, OTHER_BODIES,
                          SMUGGLED, TEXTS, TOKENS, VALID, WRONG_TARGETS, chat, chunked, good, post, request)
from service import BIN, MODEL, ROOT, Service, wait_for
from known_answer import EXACT, MAX_CONTEXT, PROMPTS, TEXT, clients_gone

PATIENCE_S = 120  # a bound on hanging, not a measure: the machine may be busy

cases = 0  # counted where a case has proven all it has to prove


def count():
    global cases
    cases += 1


class Connection:
    """A client that sends bytes as they are and reads one answer after the other."""

    def __init__(self, service: Service):
        self.socket = socket.create_connection(("127.0.0.1", service.port), timeout=PATIENCE_S)
        self.unread = b""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def send(self, data: bytes):
        # A server that refuses may close before it has taken everything.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.socket.sendall(data)

    def more(self) -> bool:
        try:
            data = self.socket.recv(1 << 16)
        except ConnectionResetError:
            data = b""
        self.unread += data
        return bool(data)

    def answer(self) -> tuple[int, dict, bytes]:
        while b"\r\n\r\n" not in self.unread:
            assert self.more(), f"closed without an answer: {self.unread!r}"
        head, _, self.unread = self.unread.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        headers = {name.lower(): value.strip() for name, value in (line.split(":", 1) for line in lines)}
        length = int(headers["content-length"])
        while len(self.unread) < length:
            assert self.more(), "closed within an answer"
        body, self.unread = self.unread[:length], self.unread[length:]
        return int(first.split()[1]), headers, body

    def at_end(self) -> bool:
        """Whether nothing follows and the server has closed."""
        return not self.unread and not self.more()


class Case(unittest.TestCase):
    maxDiff = 2000

    def expect_good(self, connection: Connection, request: bytes = GOOD):
        connection.send(request)
        status, _, body = connection.answer()
        self.assertEqual(status, 200, body)
        choice = json.loads(body)["choices"][0]
        self.assertEqual(choice["token_ids"], TEXT["greedy"][:TOKENS])
        self.assertTrue(choice["text"] and TEXT["greedy_text"].startswith(choice["text"]), choice)

    def expect_unharmed(self, service: Service):
        with Connection(service) as connection:
            self.expect_good(connection)

    def expect_error(self, connection: Connection, status: int, param: str | None, words: str) -> dict:
        found, headers, body = connection.answer()
        self.assertEqual(found, status, body)
        error = json.loads(body)["error"]
        self.assertEqual(set(error), {"message", "type", "param", "code"})
        self.assertEqual(error["type"], TYPES[status])
        self.assertEqual(error["param"], param)
        self.assertIn(words, error["message"])
        self.assertIsInstance(error["code"], str)
        self.assertLess(len(error["message"]), 600)
        return headers


TYPES = {400: "invalid_request_error", 404: "not_found_error", 405: "invalid_request_error",
         408: "invalid_request_error", 413: "invalid_request_error", 415: "invalid_request_error",
         417: "invalid_request_error", 431: "invalid_request_error", 501: "server_error",
         505: "invalid_request_error"}


class Bodies(Case):
    """What the JSON says. HTTP is in order, so the connection stays."""

    @classmethod
    def setUpClass(cls):
        cls.service = Service("--embedded", *EXACT, "--set", "gateway.max_body_bytes=1MiB")

    @classmethod
    def tearDownClass(cls):
        assert cls.service.stop() == 0, cls.service.output()

    def refused(self, path: str, body: bytes, status: int, param: str | None, words: str):
        with Connection(self.service) as connection:
            connection.send(post(body, path, "Content-Type: application/json"))
            headers = self.expect_error(connection, status, param, words)
            self.assertNotEqual(headers.get("connection"), "close")
            self.expect_good(connection)
        self.expect_unharmed(self.service)
        count()

    def test_fields_of_completions(self):
        for fields, param, words in COMPLETIONS:
            with self.subTest(str(fields)[:80]):
                self.refused("/v1/completions", json.dumps(good(**fields)).encode(), 400, param, words)

    def test_chats(self):
        for body, param, words in CHATS:
            with self.subTest(str(body)[:120]):
                self.refused("/v1/chat/completions", json.dumps(body).encode(), 400, param, words)

    def test_other_routes(self):
        for path, body, param, words in OTHER_BODIES:
            with self.subTest(path + str(body)):
                self.refused(path, json.dumps(body).encode(), 400, param, words)

    def test_texts(self):
        for name, body, words in TEXTS:
            with self.subTest(name):
                self.refused("/v1/completions", body, 400, None, words)

    def test_unknown_models(self):
        for path, body in [("/v1/completions", good(model="gpt-5")), ("/v1/completions", good(model="")),
                           ("/v1/completions", good(model="Sample")), ("/tokenize", {"model": "x", "prompt": "a"}),
                           ("/v1/chat/completions", chat(HELLO, model="x" * 10_000))]:
            with self.subTest(path + body["model"][:40]):
                self.refused(path, json.dumps(body).encode(), 404, "model", "does not exist here")

    def test_harmless_oddities(self):
        for name, fields in HARMLESS:
            with self.subTest(name):
                with Connection(self.service) as connection:
                    self.expect_good(connection, post(json.dumps({**good(), **fields}).encode()))
                    self.expect_good(connection)
                self.expect_unharmed(self.service)
                count()

    def test_empty_prompt_is_the_first_token_alone(self):
        expected = next(p for p in PROMPTS if p.get("text") == "")
        status, body = self.service.post("/v1/completions", good(prompt=""))
        self.assertEqual(status, 200, body)
        self.assertEqual(body["choices"][0]["token_ids"], expected["greedy"][:TOKENS])
        self.expect_unharmed(self.service)
        count()


class Http(Case):
    """What is wrong before the JSON is looked at."""

    @classmethod
    def setUpClass(cls):
        cls.service = Service("--embedded", *EXACT, "--set", "gateway.max_body_bytes=1MiB")

    @classmethod
    def tearDownClass(cls):
        assert cls.service.stop() == 0, cls.service.output()

    def test_broken_requests_get_one_answer_and_the_end(self):
        for name, data, status, words in BROKEN_HTTP:
            with self.subTest(name):
                with Connection(self.service) as connection:
                    sender = threading.Thread(target=connection.send, args=(data,))
                    sender.start()  # the answer may come, and must be read, while a huge body is still on its way
                    self.expect_error(connection, status, None, words)
                    sender.join()
                    if name in ("a body without a length", "a length that is too short"):
                        self.expect_error(connection, 400, None, "malformed")  # the rest is taken for a request
                    self.assertTrue(connection.at_end(), connection.unread)
                self.expect_unharmed(self.service)
                count()

    def test_wrong_targets(self):
        for name, line, status, words in WRONG_TARGETS:
            with self.subTest(name):
                with Connection(self.service) as connection:
                    connection.send(request(line=line + " HTTP/1.1"))
                    param = "model" if "does not exist" in words else None
                    headers = self.expect_error(connection, status, param, words)
                    if status == 405:
                        self.assertIn("OPTIONS", headers["allow"])
                    self.expect_good(connection)
                self.expect_unharmed(self.service)
                count()

    def test_odd_but_right(self):
        for name, data in [("a length twice", request(LENGTH, LENGTH, body=VALID)),
                           ("a folded header", request("A: b\r\n c", LENGTH, body=VALID)),
                           ("a chunk extension", request(CHUNKED,
                            body=b"%x;a=b\r\n" % len(VALID) + VALID + b"\r\n0\r\n\r\n")),
                           ("a trailer", request(CHUNKED, body=chunked(VALID, b"0\r\nA: b\r\n\r\n"))),
                           ("single bytes", request(CHUNKED,
                            body=b"".join(b"1\r\n%c\r\n" % c for c in VALID) + b"0\r\n\r\n")),
                           ("Chunked in capitals", request("Transfer-Encoding: CHUNKED", body=chunked(VALID))),
                           ("an absolute target", request(LENGTH, body=VALID,
                            line="POST http://other/v1/completions HTTP/1.1")),
                           ("an upgrade", request("Connection: Upgrade", "Upgrade: h2c", LENGTH, body=VALID)),
                           ("thousands of empty headers", request(*["a:"] * 5000, LENGTH, body=VALID))]:
            with self.subTest(name):
                with Connection(self.service) as connection:
                    self.expect_good(connection, data)
                    self.expect_good(connection)
                self.expect_unharmed(self.service)
                count()

    def test_a_bad_request_behind_good_ones(self):
        with Connection(self.service) as connection:
            connection.send(GOOD + GOOD + request(LENGTH, CHUNKED, body=SMUGGLED))
            self.expect_good(connection, b"")
            self.expect_good(connection, b"")
            self.expect_error(connection, 400, None, "malformed")
            self.assertTrue(connection.at_end())
        self.expect_unharmed(self.service)
        count()


# --- clients that wait, leave or do not read --------------------------------------------------------------

class Clients(Case):
    """Half-open, slow and vanishing clients, against a cell of 2 x 2 ranks under mpirun."""

    @classmethod
    def setUpClass(cls):
        cls.service = Service("--stages", "2", "--lanes", "2", *EXACT, "--set", "gateway.header_timeout_ms=2000",
                              "--set", "gateway.body_timeout_ms=2000", "--set", "gateway.write_timeout_ms=2000")

    @classmethod
    def tearDownClass(cls):
        assert cls.service.stop() == 0, cls.service.output()

    def expect_freed(self, before: float):
        wait_for("one more client gone", lambda: clients_gone(self.service) == before + 1, PATIENCE_S)
        wait_for("no sequence running", lambda: self.service.metric("vllm:num_requests_running") == 0, PATIENCE_S)
        self.expect_unharmed(self.service)
        count()

    def trickle(self, connection: Connection, data: bytes):
        """Sends a byte now and then until the server has closed."""
        stop = threading.Event()

        def feed():
            with contextlib.suppress(OSError):
                for i in range(len(data)):
                    connection.socket.sendall(data[i:i + 1])
                    if stop.wait(0.1):
                        return

        feeder = threading.Thread(target=feed)
        feeder.start()
        try:
            self.expect_error(connection, 408, None, "took too long")
        finally:
            stop.set()
            feeder.join()

    def test_slow_requests_time_out(self):
        slow = [("no end of the header", request(LENGTH)[:-2]),
                ("a header byte by byte", request("A: " + "a" * 10_000)),
                ("no body", request(LENGTH)),
                ("half a body", request(LENGTH, body=VALID[:20])),
                ("a body byte by byte", request("Content-Length: 10000", body=b" " * 10_000)),
                ("half a chunk", request(CHUNKED, body=b"20\r\nabc")),
                ("no last chunk", request(CHUNKED, body=chunked(VALID, b"")))]
        # All at once: most of this is waiting.
        with contextlib.ExitStack() as stack:
            connections = [stack.enter_context(Connection(self.service)) for _ in slow]
            for connection, (name, data) in zip(connections, slow):
                if "byte by byte" not in name:
                    connection.send(data)
            for connection, (name, data) in zip(connections, slow):
                with self.subTest(name):
                    if "byte by byte" in name:
                        self.trickle(connection, data)
                    else:
                        self.expect_error(connection, 408, None, "took too long")
                        self.assertTrue(connection.at_end())
                    self.expect_unharmed(self.service)
                    count()

    def test_half_requests_and_the_end(self):
        for name, data in [("nothing", b""), ("half a request line", b"POST /v1/comp"),
                           ("half a header", request(LENGTH)[:-2]),
                           ("half a body", request(LENGTH, body=VALID[:20])),
                           ("half a chunk", request(CHUNKED, body=b"20\r\nabc"))]:
            for reset in (False, True):
                with self.subTest(name, reset=reset):
                    with Connection(self.service) as connection:
                        connection.send(data)
                        if reset:
                            connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                        else:
                            connection.socket.shutdown(socket.SHUT_WR)
                            self.assertTrue(connection.at_end(), connection.unread)
                    self.expect_unharmed(self.service)
                    count()

    def stream(self, connection: Connection, **fields):
        """Begins a stream of a whole context and reads its first bytes."""
        body = good(stream=True, ignore_eos=True, max_tokens=MAX_CONTEXT - len(TEXT["ids"]), **fields)
        connection.send(post(json.dumps(body).encode()))
        while b"data: " not in connection.unread:
            self.assertTrue(connection.more())

    def test_a_client_that_resets_within_its_stream(self):
        before = clients_gone(self.service)
        with Connection(self.service) as connection:
            self.stream(connection)
            connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.expect_freed(before)

    def test_a_client_that_closes_its_sending_side_within_its_stream(self):
        before = clients_gone(self.service)
        with Connection(self.service) as connection:
            self.stream(connection)
            connection.socket.shutdown(socket.SHUT_WR)
            self.expect_freed(before)

    def test_a_client_that_leaves_before_a_whole_answer(self):
        before = clients_gone(self.service)
        with Connection(self.service) as connection:
            connection.send(post(json.dumps(good(ignore_eos=True, max_tokens=3000)).encode()))
            wait_for("running", lambda: self.service.metric("vllm:num_requests_running") > 0, PATIENCE_S)
        self.expect_freed(before)

    def test_a_client_that_never_reads(self):
        before = clients_gone(self.service)
        with Connection(self.service) as connection:
            # Far more text than the sockets' buffers hold.
            self.stream(connection, n=8, temperature=1, logprobs=20)
            self.expect_unharmed(self.service)  # beside it
            self.expect_freed(before)

    def test_a_client_that_never_reads_errors(self):
        with Connection(self.service) as connection:
            with contextlib.suppress(OSError):
                connection.socket.settimeout(1)
                connection.socket.sendall(request(line="GET /none HTTP/1.1") * 100_000)
            self.expect_unharmed(self.service)
        self.expect_unharmed(self.service)
        count()


# --- the command line -------------------------------------------------------------------------------------

class CommandLine(Case):
    def refused(self, arguments: list[str], status: int, words: list[str]):
        result = subprocess.run([BIN, *arguments], capture_output=True, timeout=PATIENCE_S,
                                stdin=subprocess.DEVNULL, check=False)
        error = result.stderr.decode()
        self.assertEqual(result.returncode, status, error)
        self.assertRegex(error, r"\Amillrace( bench)?: [^\n]+\n\Z")  # one line
        self.assertLess(len(error), 700)
        for word in words:
            self.assertIn(word, error)
        self.assertNotIn("exception", error)
        generated = subprocess.run([BIN, "generate", "--model", MODEL, *EXACT, "--set", "cache.kv_tokens=4096",
                                    "--temperature", "0", "-n", str(TOKENS), TEXT["text"]],
                                   capture_output=True, text=True, timeout=PATIENCE_S, check=True)
        text = generated.stdout.removesuffix("\n")
        self.assertTrue(text and TEXT["greedy_text"].startswith(text), text)
        count()

    def serve(self, *arguments: str) -> list[str]:
        return ["serve", "--embedded", "--port", "0", "--set", "gateway.cell_port=0", *arguments]


class Checkpoints(CommandLine):
    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="millrace-bad-")
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def test_folders(self):
        copy = self.folder / "model"
        for name, damage, words in broken_checkpoints.FOLDERS:
            with self.subTest(name):
                shutil.rmtree(copy, ignore_errors=True)
                shutil.copytree(MODEL, copy, ignore=shutil.ignore_patterns("held-out.txt", "*.md", "reference.json"))
                damage(copy)
                self.refused(self.serve("--model", str(copy)), 1, words)

    def test_gguf_files(self):
        intact, copy = self.folder / "intact.gguf", self.folder / "model.gguf"
        subprocess.run([sys.executable, str(ROOT / "scripts/make_random_checkpoint.py"), "--convert", MODEL,
                        "--quant", "q8_0", "--out", str(intact)], check=True, capture_output=True)
        for name, damage, words in broken_checkpoints.FILES:
            with self.subTest(name):
                shutil.copy(intact, copy)
                damage(copy)
                self.refused(self.serve("--model", str(copy)), 1, words)

    def test_paths(self):
        empty = self.folder / "empty"
        empty.mkdir()
        for path, words in [("/no/such/model", ["/no/such/model", "no such model"]),
                            (str(empty), ["config.json", "cannot be opened"]),
                            (MODEL + "/README.md", ["README.md", "not a GGUF file"]),
                            ("", ["model.path", "is empty"])]:
            with self.subTest(path):
                self.refused(self.serve("--model", path), 1, words)


class Configuration(CommandLine):
    def test_files(self):
        with tempfile.TemporaryDirectory(prefix="millrace-bad-") as folder:
            path = pathlib.Path(folder, "bad.yaml")
            for name, text, words in bad_commands.CONFIGURATIONS:
                with self.subTest(name):
                    path.write_text(text)
                    by_model = any(word in ("gateway.host", "1 to 10") for word in words)
                    self.refused(["serve", "--model", MODEL, "--config", str(path), "--set", "gateway.cell_port=0"],
                                 1 if by_model else 2, words)
                    if not by_model:
                        self.refused(["config", "--check", str(path)], 2, words)

    def test_a_good_file_is_called_so(self):
        path = str(pathlib.Path(bad_commands.__file__).parents[2] / "config" / "default.yaml")
        result = subprocess.run([BIN, "config", "--check", path], capture_output=True, text=True, timeout=20)
        self.assertEqual((result.returncode, result.stdout, result.stderr), (0, f"{path}: OK\n", ""))

    def test_an_empty_file_changes_nothing(self):
        with tempfile.NamedTemporaryFile(suffix=".yaml") as empty:
            self.refused(["serve", "--config", empty.name], 1, ["model.path", "is empty"])

    def test_flags(self):
        for arguments, status, words in bad_commands.FLAGS:
            with self.subTest(" ".join(map(ascii, arguments))):
                self.refused(arguments, status, words)


if __name__ == "__main__":
    program = unittest.main(verbosity=2, exit=False)
    print(f"bad input: {cases} cases", flush=True)
    sys.exit(not program.result.wasSuccessful())
