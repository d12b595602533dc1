#!/usr/bin/env python3
"""The real command as users run it: gateway, mpirun cell, HTTP clients, signals and kills."""

import contextlib
import http.client
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
import unittest

from service import BIN, MODEL, PROMPT, ROOT, Service, alive, greedy, processes_of, wait_for

TIME_FACTOR = int(os.environ.get("MILLRACE_TIME_FACTOR", "1"))  # by which a sanitizer makes steps slower


def shared_memory() -> set[str]:
    return {str(p) for p in pathlib.Path("/dev/shm").glob("*")}


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

    def test_a_beginning_that_was_seen_is_not_computed_again(self):
        tokens = self.service.post("/tokenize", {"model": "sample", "prompt": PROMPT})[1]["tokens"]
        beginning = (tokens * 60)[:300]
        hits = self.service.metric("vllm:prefix_cache_hits_total")

        def ask(end: list[int]) -> tuple[list[int], dict]:
            body = greedy(24, prompt=beginning + end, temperature=0.8, seed=9)
            answer = self.service.post("/v1/completions", body)[1]
            return answer["choices"][0]["token_ids"], answer["usage"]

        first, usage = ask(tokens)
        self.assertEqual(usage["prompt_tokens_details"]["cached_tokens"], 0)
        again, usage = ask(tokens)
        self.assertEqual(again, first)
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        self.assertGreater(cached, 200)
        self.assertLess(cached, usage["prompt_tokens"])
        self.assertGreater(ask(tokens[::-1])[1]["prompt_tokens_details"]["cached_tokens"], 200, "another end")
        wait_for("the hits", lambda: self.service.metric("vllm:prefix_cache_hits_total") >= hits + 2 * cached)
        self.assertGreaterEqual(self.service.metric("vllm:prompt_tokens_cached_total"), 2 * cached)

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

    def test_a_gateway_that_was_kept_from_running_loses_nothing(self):
        def tokens(events):
            return [t for e in events if e != "[DONE]" for choice in e["choices"]
                    for t in choice.get("token_ids") or []]

        expected = tokens(self.service.stream("/v1/completions", greedy(4000)))
        stream = self.service.stream("/v1/completions", greedy(4000))
        first = next(stream)
        self.service.process.send_signal(signal.SIGSTOP)
        time.sleep(6)  # twice deadlines.heartbeat_limit_ms
        self.service.process.send_signal(signal.SIGCONT)
        self.assertEqual(tokens([first, *stream]), expected)

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
        self.assertEqual(values("millrace_cell_info", 'backend="cpu",cell="[^"]+",transport="mpi"'), [1.0])
        self.assertEqual(values("millrace_cell_start_state", labels + 'state="ready"'), [1.0])
        self.assertEqual(self.service.metric("millrace_cell_loaded_ratio"), 1)
        self.assertEqual(self.service.metric("millrace_cell_starts_total"), 1)
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

    def test_ctrl_c_twice_waits_for_nothing_and_leaves_nothing_behind(self):
        scratch = pathlib.Path(tempfile.gettempdir())
        before = set(scratch.glob("millrace-*"))
        token = scratch / f"millrace-drain-{self.service.port}"
        self.assertTrue(token.exists())
        stream = self.service.stream("/v1/completions", greedy(900))
        next(stream)
        pids = processes_of(self.service.process.pid)
        self.service.process.send_signal(signal.SIGINT)
        wait_for("the first one's answer", lambda: "draining" in self.service.output())
        self.assertEqual(self.service.stop(signal.SIGINT), 130, self.service.output())
        with contextlib.suppress(OSError, http.client.HTTPException):
            self.assertNotIn("[DONE]", list(stream))  # it was cut
        self.expect_nothing_left(pids)
        self.assertFalse(token.exists())
        self.assertEqual(set(scratch.glob("millrace-*")) - before, set())

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
        """The streams pause, then go on with the tokens that an undisturbed run gives, each once."""
        drawn = {**greedy(400), "temperature": 0.9, "seed": 7, "presence_penalty": 0.3, "logprobs": 2}
        bodies = [greedy(400), drawn]
        expected = [self.service.post("/v1/completions", body)[1]["choices"][0] for body in bodies]
        epoch = self.service.metric("millrace_cell_epoch")
        streams = [self.service.stream("/v1/completions", body) for body in bodies]
        firsts = [next(stream) for stream in streams]
        how(self.service.ranks())
        for first, stream, whole in zip(firsts, streams, expected):
            *events, last = [first, *stream]
            self.assertEqual(last, "[DONE]", events[-1])
            choices = [e["choices"][0] for e in events if e["choices"]]
            self.assertEqual([t for c in choices for t in c.get("token_ids") or []], whole["token_ids"])
            self.assertEqual("".join(c["text"] for c in choices), whole["text"])
            if whole["logprobs"]:
                for key in ("token_logprobs", "top_logprobs"):
                    self.assertEqual([v for c in choices if c["logprobs"] for v in c["logprobs"][key]], whole["logprobs"][key])
        self.assertGreater(self.service.metric("millrace_cell_epoch"), epoch)
        self.assertEqual(self.service.metric("millrace_sequences_replayed_total"), len(bodies))
        self.assertEqual(self.service.metric("millrace_sequences_failed_total"), 0)

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
            self.assertEqual(results, 8 * [(False, expected)])
            self.assertIn(service.metric("millrace_sequences_replayed_total"), range(1, 8), "one cell's requests, not the other's")
            wait_for("both cells again", lambda: service.metric("millrace_cells_ready") == 2)
        finally:
            service.stop()

    def test_bound_workers_of_all_cells_divide_the_cores(self):
        allowed = os.sched_getaffinity(0)
        service = Service("--cells", "2", "--set", "grid.bind_threads=core")
        try:
            wait_for("both cells", lambda: service.metric("millrace_cells_ready") == 2)
            cores = [os.sched_getaffinity(rank) for rank in service.ranks()]
            bound = [one for one in cores if one != allowed] if len(allowed) > 1 else [allowed, allowed]
            self.assertEqual(len(cores), 4)  # a coordinator and a worker each
            self.assertEqual(len(bound), 2, cores)
            self.assertEqual(bound[0] | bound[1], allowed)
            self.assertEqual(len(bound[0] & bound[1]), 0 if len(allowed) > 1 else 1)
            self.assertIn("cores ", service.output())
        finally:
            self.assertEqual(service.stop(), 0, service.output())

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


class Grids(unittest.TestCase):
    """Contract C1 under mpirun: one long prompt alone and among 64 others, in every grid the same numbers."""

    CHUNKS = (1, 7, 64, 512)  # the last one takes the prompt whole
    EXCHANGES = ("fixed", "exact", "all_gather")
    BODY = {"model": "sample", "max_tokens": 16, "temperature": 0.9, "seed": 3, "top_p": 0.9, "ignore_eos": True,
            "logprobs": 5, "echo": True, "return_token_ids": True}

    def arrangements(self):
        """Every pair of chunk and exchange, and both with two and with four lanes, which place the experts differently.
        One lane exchanges nothing."""
        for i, chunk in enumerate(self.CHUNKS):
            for j, exchange in enumerate(self.EXCHANGES):
                yield ((2, 2), (1, 4))[(i + j) % 2], chunk, exchange
        yield from (((4, 1), chunk, "auto") for chunk in (7, 512))

    def ask(self, service, prompt) -> list:
        """The choices; numbers with a point as the text that came."""
        with contextlib.closing(service.connect()) as connection:
            connection.request("POST", "/v1/completions", json.dumps({**self.BODY, "prompt": prompt}),
                               {"Content-Type": "application/json"})
            response = connection.getresponse()
            text = response.read().decode()
        self.assertEqual(response.status, 200, text)
        return json.loads(text, parse_float=str)["choices"]

    @contextlib.contextmanager
    def others(self, service, prompt, max_tokens):
        """64 streams under way."""
        with contextlib.ExitStack() as streams:
            connections = [streams.enter_context(contextlib.closing(service.connect())) for _ in range(64)]
            for i, connection in enumerate(connections):
                body = greedy(max_tokens, stream=True, prompt=prompt[i:i + 1 + i % 11], temperature=i % 3 / 2, seed=i)
                connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
            for connection in connections:
                response = streams.enter_context(connection.getresponse())
                next(line for line in response if line.startswith(b"data: {"))  # comments may come before
            yield

    def alone_and_among_others(self, grid, chunk, exchange) -> list:
        service = Service("--stages", str(grid[0]), "--lanes", str(grid[1]), "--set", "cache.max_sequences=65",
                          "--set", f"scheduler.prefill_chunk_tokens={chunk}", "--set", f"scheduler.exchange={exchange}")
        try:
            self.assertEqual(len(service.ranks()), grid[0] * grid[1] + 1)
            text = (ROOT / "models/sample/held-out.txt").read_text(encoding="utf-8")[:2000]
            prompt = service.post("/tokenize", {"model": "sample", "prompt": text})[1]["tokens"][:300]
            self.assertEqual(len(prompt), 300)
            alone = self.ask(service, prompt)
            # To the end; token by token, for as long as is cheap.
            ended = service.metric("vllm:request_success_total")
            with self.others(service, prompt, 4000 if chunk > 1 else 60):
                among = self.ask(service, prompt)
                ended = service.metric("vllm:request_success_total") - ended
            self.assertEqual(among, alone)
            self.assertEqual(ended, 1 if chunk > 1 else 65)
        finally:
            status = service.stop()
        self.assertEqual(status, 0, service.output())
        return alone

    def test_same_tokens_and_logprobs_in_every_grid_chunk_and_exchange(self):
        expected = self.alone_and_among_others((1, 1), 512, "auto")
        logprobs = expected[0]["logprobs"]
        self.assertEqual([len(logprobs[k]) for k in ("token_logprobs", "top_logprobs")], [316, 316])  # the prompt's too
        self.assertEqual(len(expected[0]["token_ids"]), 16)
        for arrangement in self.arrangements():
            with self.subTest(arrangement):
                self.assertEqual(self.alone_and_among_others(*arrangement), expected)


class Embedded(unittest.TestCase):
    def test_threads_of_one_process_give_the_same_tokens(self):
        answers = []
        for arguments in [["--embedded"], ["--embedded", "--stages", "2", "--lanes", "2"]]:
            service = Service(*arguments)
            self.assertEqual(service.ranks(), [])
            answers.append(service.post("/v1/completions", greedy(48))[1]["choices"][0]["token_ids"])
            self.assertEqual(service.stop(), 0, service.output())
        self.assertEqual(answers[0], answers[1])

    def test_a_cell_that_fails_ends_its_streams_with_an_error_and_the_command(self):
        # One token is far within the deadline, hundreds at once far beyond it: the reference kernels are slow.
        limit = 3000 * TIME_FACTOR
        limits = [f"deadlines.{name}_ms={limit}" for name in ("step", "collective")]
        sizes = [f"scheduler.{name}_tokens=4096" for name in ("max_step", "prefill_chunk")]
        service = Service("--embedded", "--set", "grid.isa=reference", "--set", "grid.threads_per_rank=1",
                          *(word for one in limits + sizes for word in ("--set", one)))
        streams = [service.stream("/v1/completions", greedy(2000)) for _ in range(2)]
        for stream in streams:
            next(stream)
        status, answer = service.post("/v1/completions", {"model": "sample", "prompt": [100] * 1000, "max_tokens": 1})
        self.assertEqual(status, 500, answer)
        for stream in streams:
            last = list(stream)[-1]
            self.assertIn(f"deadline of {limit} ms", last["error"]["message"], last)
        self.assertEqual(service.process.wait(120), 1, service.output())
        self.assertIn("millrace: step", service.output())

    def test_ctrl_c_twice_waits_for_nothing(self):
        service = Service("--embedded", "--lanes", "2")
        stream = service.stream("/v1/completions", greedy(900))
        next(stream)
        service.process.send_signal(signal.SIGINT)
        wait_for("the first one's answer", lambda: "draining" in service.output())
        self.assertEqual(service.stop(signal.SIGINT), 130, service.output())


def has_ipv6() -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as probe:
        probe.bind(("::1", 0))
        return True
    return False


class Console(unittest.TestCase):
    """What the command prints, pasted."""

    def paste(self, service: Service) -> dict:
        line = wait_for("the curl line", lambda: re.search(r"^  (curl .*)$", service.output(), re.MULTILINE))[1]
        line = line.replace("YOUR-KEY", "first")
        done = subprocess.run(["bash", "-c", line + " --silent --show-error"], capture_output=True, text=True, timeout=60)
        self.assertEqual(done.returncode, 0, done.stderr)
        answer = json.loads(done.stdout)
        self.assertIn("choices", answer, line)
        self.assertEqual(answer["usage"]["completion_tokens"] > 0, True)
        return answer

    def test_the_curl_line_works_as_it_is_printed(self):
        for arguments, kind in [([], "chat.completion"), (["--set", 'gateway.api_keys=["first"]'], "chat.completion"),
                                (["--set", "model.path=random:tiny"], "text_completion"),
                                (["--host", "::1"], "chat.completion"), (["--host", "0.0.0.0"], "chat.completion")]:
            if "::1" in arguments and not has_ipv6():
                continue
            with self.subTest(arguments):
                service = Service("--embedded", *arguments)
                try:
                    self.assertEqual(self.paste(service)["object"], kind)
                finally:
                    self.assertEqual(service.stop(), 0, service.output())

    def test_bench_as_the_readme_has_it(self):
        readme = (ROOT / "README.md").read_text()
        command = re.search(r"^ {4}millrace (bench .*)$", readme, re.MULTILINE)[1].split()
        service = Service("--embedded")
        try:
            url = f"http://127.0.0.1:{service.port}"
            command = [url if word.startswith("http://") else word for word in command]
            done = subprocess.run([BIN, *command, "--num-prompts", "4"], capture_output=True, text=True,
                                  timeout=120 * TIME_FACTOR)
            self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        finally:
            self.assertEqual(service.stop(), 0)

    def test_verify_names_the_file_that_is_not_whole(self):
        def verify(*arguments):
            done = subprocess.run([BIN, "verify", *arguments], capture_output=True, text=True, timeout=60)
            return done.returncode, done.stdout, done.stderr

        status, said, _ = verify("--model", MODEL)
        self.assertEqual(status, 0)
        self.assertIn("every tensor is there", said)
        self.assertRegex(said, r"files as in .*SHA256SUMS")
        with tempfile.TemporaryDirectory() as folder:
            copy = pathlib.Path(folder) / "model"
            shutil.copytree(MODEL, copy)
            weights = copy / "model.safetensors"
            content = bytearray(weights.read_bytes())
            content[-5] ^= 1  # headers and shapes stay right
            weights.write_bytes(content)
            (copy / "tokenizer_config.json").unlink()
            (copy / "surplus.json").write_text("{}")
            status, _, said = verify("--model", str(copy))
            self.assertEqual(status, 1)
            self.assertRegex(said, r"millrace: model\.safetensors: .*SHA-256")
            self.assertRegex(said, r"millrace: tokenizer_config\.json: No such file")
            self.assertRegex(said, r"millrace: surplus\.json: is not in ")
            self.assertEqual(said.count("\n"), 3, said)
            weights.write_bytes(content[:-100])
            status, _, said = verify("--model", str(copy))
            self.assertEqual((status, said.count("\n")), (1, 1))
            (copy / "SHA256SUMS").write_text("not a sum")
            weights.write_bytes(content)
            status, _, said = verify("--model", str(copy))
            self.assertEqual(status, 1)
            self.assertIn("SHA256SUMS:1: must be 64", said)
            (copy / "SHA256SUMS").unlink()
            status, said, _ = verify("--model", str(copy))
            self.assertEqual(status, 0)
            self.assertIn("contents not compared", said)

    def commands(self) -> list[str]:
        result = subprocess.run([BIN, "--help"], capture_output=True, text=True, timeout=20)
        self.assertEqual(result.returncode, 0)
        return re.findall(r"^  ([a-z][a-z-]+) ", result.stdout.partition("Subcommands:")[2], re.MULTILINE)

    def test_every_option_of_every_command_says_what_it_is(self):
        commands = self.commands()
        self.assertGreaterEqual(len(commands), 15)
        for command in commands:
            result = subprocess.run([BIN, command, "--help"], capture_output=True, text=True, timeout=20)
            self.assertEqual(result.returncode, 0)
            # CLI11 breaks the line where the names reach into the column of the descriptions.
            text = re.sub(r"\n {30,}", "  ", result.stdout)
            options = re.findall(r"^  (-.*)$", text, re.MULTILINE)
            self.assertIn("--help", text)
            for option in options:
                self.assertTrue(re.search(r"  \S", option) or option[28:].strip(), f"{command}: no description: {option}")


if __name__ == "__main__":
    unittest.main(verbosity=2)
