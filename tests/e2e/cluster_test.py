#!/usr/bin/env python3
"""The real command as users run it: gateway, mpirun cell, HTTP clients, signals and kills.

Standard library only. MILLRACE_BIN names the executable; the model is models/sample.
"""

import contextlib
import http.client
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import threading
import time
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
BIN = os.environ.get("MILLRACE_BIN", str(ROOT / "build/cpu/bin/millrace"))
MODEL = str(ROOT / "models/sample")
PROMPT = "In the beginning God created"


def shared_memory() -> set[str]:
    return {str(p) for p in pathlib.Path("/dev/shm").glob("*")}


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


class Service:
    """`millrace serve` with its output collected."""

    def __init__(self, *arguments: str, ready: bool = True):
        self.process = subprocess.Popen(
            [BIN, "serve", "--model", MODEL, "--port", "0", "--set", "gateway.cell_port=0", *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.lines: list[str] = []
        self.port = 0
        threading.Thread(target=self._read, daemon=True).start()
        if ready:
            self.port = int(wait_for("the URL", self._url))

    def _read(self):
        with self.process.stdout as output:
            for line in output:
                self.lines.append(line.rstrip("\n"))

    def _url(self):
        if self.process.poll() is not None:
            raise AssertionError("serve ended:\n" + self.output())
        found = re.search(r"serves \S+ at http://127\.0\.0\.1:(\d+)", self.output())
        return found and found.group(1)

    def output(self) -> str:
        return "\n".join(self.lines)

    def ranks(self) -> list[int]:
        """The worker processes, mpirun's children."""
        return sorted(p for p in processes_of(self.process.pid) if command_line(p)[1:2] == ["worker"])

    def stop(self, number=signal.SIGTERM, limit_s: float = 60) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(limit_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError("serve did not end:\n" + self.output()) from None

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


class Cluster(unittest.TestCase):
    """One cell of 2 stages x 2 lanes for the tests that leave it whole."""

    @classmethod
    def setUpClass(cls):
        cls.service = Service("--stages", "2", "--lanes", "2")

    @classmethod
    def tearDownClass(cls):
        assert cls.service.stop() == 0, cls.service.output()

    def test_plan_and_progress_are_printed(self):
        output = self.service.output()
        self.assertIn("2 stages x 2 lanes", output)
        self.assertIn("curl http://127.0.0.1", output)
        self.assertEqual(len(self.service.ranks()), 5)

    def test_the_curl_line_works_when_pasted(self):
        line = next(l for l in self.service.lines if l.strip().startswith("curl "))
        answer = subprocess.run(["sh", "-c", line.replace("curl ", "curl -sS ", 1)],
                                capture_output=True, text=True, timeout=60, check=True)
        body = json.loads(answer.stdout)
        self.assertEqual(body["object"], "chat.completion")
        self.assertTrue(body["choices"][0]["message"]["content"])

    def test_stream_and_answer_agree(self):
        status, whole = self.service.post("/v1/completions", greedy())
        self.assertEqual(status, 200)
        events = list(self.service.stream("/v1/completions", greedy()))
        self.assertEqual(events[-1], "[DONE]")
        text = "".join(e["choices"][0]["text"] for e in events[:-1] if e["choices"])
        self.assertEqual(text, whole["choices"][0]["text"])
        self.assertEqual(whole["usage"]["completion_tokens"], 32)

    def test_same_tokens_as_one_process(self):
        status, body = self.service.post("/v1/completions", greedy(48))
        self.assertEqual(status, 200)
        alone = subprocess.run([BIN, "generate", "--model", MODEL, "--temperature", "0", "-n", "48",
                                "--ignore-eos", PROMPT], capture_output=True, text=True, timeout=120,
                               check=True).stdout
        self.assertEqual(body["choices"][0]["text"], alone.removesuffix("\n"))

    def test_same_tokens_under_load(self):
        alone = self.service.post("/v1/completions", greedy(40))[1]["choices"][0]["token_ids"]
        seeded = {"temperature": 0.9, "seed": 11, "top_p": 0.95}
        drawn = self.service.post("/v1/completions", greedy(40, **seeded))[1]["choices"][0]["token_ids"]
        got, threads = {}, []

        def ask(i):
            more = seeded if i % 2 else {}
            got[i] = self.service.post("/v1/completions", greedy(40, **more))[1]["choices"][0]["token_ids"]

        for i in range(24):
            threads.append(threading.Thread(target=ask, args=(i,)))
            threads[-1].start()
        for thread in threads:
            thread.join()
        for i in range(24):
            self.assertEqual(got[i], drawn if i % 2 else alone, f"request {i}")

    def test_several_choices_and_logprobs(self):
        body = greedy(8, n=3, temperature=0.8, seed=5, logprobs=2)
        status, answer = self.service.post("/v1/completions", body)
        self.assertEqual(status, 200)
        self.assertEqual([c["index"] for c in answer["choices"]], [0, 1, 2])
        for choice in answer["choices"]:
            self.assertEqual(len(choice["logprobs"]["token_logprobs"]), 8)
        self.assertEqual(len({c["text"] for c in answer["choices"]}), 3)

    def test_echo_with_prompt_logprobs(self):
        body = greedy(1, echo=True, logprobs=1)
        status, answer = self.service.post("/v1/completions", body)
        self.assertEqual(status, 200)
        choice = answer["choices"][0]
        self.assertTrue(choice["text"].startswith(PROMPT))
        self.assertIsNone(choice["logprobs"]["token_logprobs"][0])
        self.assertTrue(all(p <= 0 for p in choice["logprobs"]["token_logprobs"][1:]))

    def test_bad_requests_name_the_field(self):
        for body, param in [({"model": "sample", "prompt": "a", "temperature": 9}, "temperature"),
                            ({"model": "sample", "prompt": "a", "max_tokens": -1}, "max_tokens"),
                            ({"model": "sample"}, "prompt")]:
            status, answer = self.service.post("/v1/completions", body)
            self.assertEqual(status, 400, answer)
            self.assertEqual(answer["error"]["param"], param)
        status, answer = self.service.post("/v1/completions", {"model": "no", "prompt": "a"})
        self.assertEqual(status, 404)
        self.assertEqual(set(answer["error"]), {"message", "type", "param", "code"})

    def test_a_client_that_goes_away_frees_its_sequence(self):
        stream = self.service.stream("/v1/completions", greedy(400))
        next(stream)
        wait_for("running", lambda: self.service.metric("vllm:num_requests_running") >= 1)
        stream.close()
        wait_for("free", lambda: self.service.metric("vllm:num_requests_running") == 0, 20)

    def test_tokenize_round_trip_models_and_health(self):
        status, tokens = self.service.post("/tokenize", {"model": "sample", "prompt": PROMPT})
        self.assertEqual(status, 200)
        status, text = self.service.post("/detokenize", {"model": "sample", "tokens": tokens["tokens"]})
        self.assertTrue(text["prompt"].endswith(PROMPT), text)
        self.assertEqual(json.loads(self.service.get("/v1/models")[1])["data"][0]["id"], "sample")
        self.assertEqual(self.service.get("/health/live")[0], 200)
        self.assertTrue(self.service.ready())
        self.assertIn("vllm:time_to_first_token_seconds_bucket", self.service.get("/metrics")[1])
        self.assertEqual(self.service.metric("millrace_build_info"), 1)
        self.assertGreaterEqual(self.service.metric("millrace_http_requests_total"), 1)


    def test_what_happens_inside_the_cell_is_measured(self):
        self.service.post("/v1/completions", greedy(200))  # long enough for a report of each worker
        labels = 'cell="[^"]+",'

        def values(name, labels):
            text = self.service.get("/metrics")[1]
            return [float(v) for v in re.findall(rf"^{name}{{{labels}}} (\S+)$", text, re.MULTILINE)]

        # Every worker ran steps and exchanged tokens; every MoE layer's rows are counted on both lanes.
        for stage in "01":
            for lane in "01":
                place = rf'cell="[^"]+",lane="{lane}",stage="{stage}"'
                wait_for(f"the report of worker {stage},{lane}",
                         lambda: values("millrace_worker_step_seconds_total", place))
                self.assertGreater(values("millrace_worker_exchange_seconds_total", place)[0], 0)
        for lane in "01":
            rows = values("millrace_expert_rows_total", rf'cell="[^"]+",lane="{lane}",layer="\d+"')
            self.assertEqual(len(rows), 8)  # layers 2 to 9 of the sample model
            self.assertTrue(all(r > 0 for r in rows), rows)
        self.assertGreater(self.service.metric("millrace_cell_busy_seconds_total"), 0)
        self.assertGreater(self.service.metric("millrace_step_seconds_count"), 100)
        self.assertGreater(self.service.metric("vllm:iteration_tokens_total_count"), 100)
        for phase in ("mpi_init", "plan", "load"):
            self.assertTrue(values("millrace_cell_start_phase_seconds", labels + f'phase="{phase}"'), phase)
        wait_for("the imbalance of a window of five seconds",
                 lambda: (self.service.post("/v1/completions", greedy(100)),
                          self.service.metric("millrace_expert_imbalance_ratio") >= 8)[1])
        self.assertEqual(values("vllm:cache_config_info", '.*block_size="32",cache_dtype="bfloat16".*'), [1.0])


class Life(unittest.TestCase):
    """Signals, kills and what is left behind."""

    def setUp(self):
        self.before = shared_memory()
        self.service = Service("--stages", "2", "--lanes", "2", "--set", "deadlines.step_ms=4000",
                               "--set", "deadlines.collective_ms=3000",
                               "--set", "cell.restart_backoff_min_ms=50")

    def tearDown(self):
        self.service.stop()

    def expect_nothing_left(self, pids):
        wait_for("all processes gone", lambda: not [p for p in pids if alive(p)], 20)
        self.assertEqual(shared_memory() - self.before, set())
        with socket.socket() as probe:
            self.assertNotEqual(probe.connect_ex(("127.0.0.1", self.service.port)), 0)

    def test_ctrl_c_leaves_nothing_behind(self):
        pids = processes_of(self.service.process.pid)
        self.assertGreaterEqual(len(pids), 7)  # serve, mpirun, five ranks
        self.assertEqual(self.service.stop(signal.SIGINT), 0, self.service.output())
        self.expect_nothing_left(pids)

    def test_a_killed_supervisor_leaves_no_process(self):
        pids = processes_of(self.service.process.pid)
        self.service.process.kill()
        self.service.process.wait()
        wait_for("all processes gone", lambda: not [p for p in pids if alive(p)], 20)
        left = shared_memory() - self.before  # nobody was there to remove it
        self.assertEqual(len(left), 1, left)
        self.service = Service("--stages", "1", "--lanes", "2")
        self.assertFalse(left & shared_memory(), "the next start removes what a killed one left")

    def test_sigterm_lets_streams_finish(self):
        stream = self.service.stream("/v1/completions", greedy(150))
        first = next(stream)
        self.service.process.send_signal(signal.SIGTERM)
        rest = list(stream)
        self.assertEqual(rest[-1], "[DONE]")
        tokens = sum(len(e["choices"][0].get("token_ids") or []) for e in [first, *rest[:-1]] if e["choices"])
        self.assertEqual(tokens, 150)
        self.assertEqual(self.service.process.wait(60), 0, self.service.output())

    def break_and_recover(self, how):
        expected = self.service.post("/v1/completions", greedy())[1]["choices"][0]["token_ids"]
        epoch = self.service.metric("millrace_cell_epoch")
        stream = self.service.stream("/v1/completions", greedy(400))
        next(stream)
        how(self.service.ranks())
        events = list(stream)  # must end, by an explicit error
        self.assertIn("error", events[-1] if events[-1] != "[DONE]" else events[-2])
        wait_for("a higher epoch", lambda: self.service.ready() and
                 self.service.metric("millrace_cell_epoch") > epoch, 60)
        again = self.service.post("/v1/completions", greedy())[1]["choices"][0]["token_ids"]
        self.assertEqual(again, expected)

    def test_a_killed_worker(self):
        self.break_and_recover(lambda ranks: os.kill(ranks[-1], signal.SIGKILL))

    def test_a_killed_coordinator(self):
        self.break_and_recover(lambda ranks: os.kill(ranks[0], signal.SIGKILL))

    def test_a_hung_worker(self):
        self.break_and_recover(lambda ranks: os.kill(ranks[-1], signal.SIGSTOP))

    def test_a_hung_coordinator(self):
        self.break_and_recover(lambda ranks: os.kill(ranks[0], signal.SIGSTOP))


class Cells(unittest.TestCase):
    """Several cells behind one gateway, and more work than they can take."""

    def test_the_death_of_one_cell_leaves_the_other_serving(self):
        service = Service("--cells", "2", "--set", "cell.restart_backoff_min_ms=50")
        try:
            wait_for("both cells", lambda: service.metric("millrace_cells_ready") == 2)
            expected = service.post("/v1/completions", greedy(2000))[1]["choices"][0]["token_ids"]
            started, results = [], []

            def ask():
                stream = service.stream("/v1/completions", greedy(2000))
                events = [next(stream)]
                started.append(True)
                events += stream
                broken = any(isinstance(e, dict) and "error" in e for e in events)
                tokens = [t for e in events if isinstance(e, dict) and e.get("choices")
                          for t in e["choices"][0].get("token_ids") or []]
                results.append((broken, tokens))

            threads = [threading.Thread(target=ask) for _ in range(8)]
            for thread in threads:
                thread.start()
            wait_for("all streams", lambda: len(started) == 8)
            os.kill(service.ranks()[-1], signal.SIGKILL)
            for thread in threads:
                thread.join()
            self.assertTrue(service.ready())
            whole = [tokens for broken, tokens in results if not broken]
            self.assertEqual(len(results), 8)
            self.assertTrue(0 < len(whole) < 8, "one cell's requests end with an error, the other's do not")
            for tokens in whole:
                self.assertEqual(tokens, expected)
            for broken, tokens in results:  # what was delivered before the error was right
                self.assertEqual(tokens, expected[:len(tokens)])
            wait_for("both cells again", lambda: service.metric("millrace_cells_ready") == 2)
        finally:
            service.stop()

    def test_more_than_the_queue_holds_is_refused_at_once(self):
        service = Service("--embedded", "--set", "cache.max_sequences=1", "--set",
                          "gateway.max_queued_requests=4", "--set", "scheduler.max_waiting=1")
        try:
            statuses, headers = [], []

            def ask():
                with contextlib.closing(service.connect()) as connection:
                    connection.request("POST", "/v1/completions", json.dumps(greedy(200)),
                                       {"Content-Type": "application/json"})
                    response = connection.getresponse()
                    body = json.loads(response.read())
                    statuses.append(response.status)
                    if response.status != 200:
                        headers.append((response.getheader("Retry-After"), body["error"]["code"]))

            threads = [threading.Thread(target=ask) for _ in range(40)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            self.assertEqual(set(statuses), {200, 503})
            for retry_after, code in headers:
                self.assertGreaterEqual(int(retry_after), 1)
                self.assertEqual(code, "server_is_overloaded")
            self.assertEqual(service.post("/v1/completions", greedy(4))[0], 200)
        finally:
            service.stop()


class Refusals(unittest.TestCase):
    """What cannot work is said at once."""

    def run_serve(self, *arguments):
        return subprocess.run([BIN, "serve", "--port", "0", *arguments], capture_output=True, text=True,
                              timeout=60)

    def test_bad_configuration(self):
        for arguments, words in [(["--model", "/no/such/model"], "/no/such/model"),
                                 (["--model", MODEL, "--stages", "99"], "grid.stages"),
                                 (["--model", MODEL, "--lanes", "17"], "grid.lanes"),
                                 (["--model", MODEL, "--set", "gateway.prot=1"], "gateway.port"),
                                 (["--model", MODEL, "--set", "cache.kv_tokens=8"], "cache.kv_tokens")]:
            result = self.run_serve(*arguments)
            self.assertNotEqual(result.returncode, 0, arguments)
            self.assertIn(words, result.stderr + result.stdout, arguments)

    def test_a_taken_port(self):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = str(taken.getsockname()[1])
            result = subprocess.run([BIN, "serve", "--model", MODEL, "--port", port], capture_output=True,
                                    text=True, timeout=60)
        self.assertNotEqual(result.returncode, 0)
        self.assertIn(port, result.stderr)

    def test_help(self):
        for command in [[], ["serve"], ["generate"], ["bench"], ["plan"]]:
            result = subprocess.run([BIN, *command, "--help"], capture_output=True, text=True, timeout=20)
            self.assertEqual(result.returncode, 0)
            self.assertIn("--help", result.stdout)


class Grids(unittest.TestCase):
    def test_same_tokens_and_logprobs_in_every_grid_under_mpirun(self):
        answers = {}
        for stages, lanes in [(1, 1), (1, 4), (4, 1), (2, 2)]:
            service = Service("--stages", str(stages), "--lanes", str(lanes))
            self.assertEqual(len(service.ranks()), stages * lanes + 1)
            body = [greedy(40, logprobs=3), greedy(40, temperature=0.9, seed=3, top_p=0.9, logprobs=1)]
            answers[stages, lanes] = [service.post("/v1/completions", b)[1]["choices"] for b in body]
            self.assertEqual(service.stop(), 0, service.output())
        for grid, answer in answers.items():
            self.assertEqual(answer, answers[1, 1], grid)


class Embedded(unittest.TestCase):
    def test_threads_of_one_process_give_the_same_tokens(self):
        answers = []
        for arguments in [["--embedded"], ["--embedded", "--stages", "2", "--lanes", "2"]]:
            service = Service(*arguments)
            self.assertEqual(service.ranks(), [])
            answers.append(service.post("/v1/completions", greedy(48))[1]["choices"][0]["token_ids"])
            self.assertEqual(service.stop(), 0, service.output())
        self.assertEqual(answers[0], answers[1])


if __name__ == "__main__":
    unittest.main(verbosity=2)
