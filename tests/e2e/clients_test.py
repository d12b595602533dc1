#!/usr/bin/env python3
"""Clients as people use them against the real command: the official OpenAI package, curl, wrk, many streams.

The OpenAi classes need build/clients-venv (scripts/test-clients-venv) and change over to its Python by themselves;
without it they count as skipped (exit status 77). The others need Debian's curl and wrk and nothing beyond the
standard library. Known answers are Transformers' own. MILLRACE_BIN names the executable.
"""

import asyncio
import concurrent.futures
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import threading
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from service import MODEL, ROOT, Service, wait_for
from known_answer import (CHAT, CHAT_ANSWER, CHAT_FINISH, EXACT, MAX_CONTEXT, TEXT, VOCABULARY, clients_gone,
                          completion)
from openai_requests import (ANSWER, BIASED, CHATS, COMPLETIONS, MESSAGES, WHOLE, WORD, Answer, Choice, ask,
                             ask_async, ask_stream, ask_stream_async)

try:
    import openai
except ImportError:
    openai = None

VENV_PYTHON = ROOT / "build/clients-venv/bin/python"
PATIENCE_S = 300  # a bound on hanging, not a measure: the machine may be busy

cases = 0  # counted where a case has shown all it has to show


def count():
    global cases
    cases += 1


# --- the official package ---------------------------------------------------------------------------------

def client_of(service: Service, kind: str = "OpenAI", **options):
    return getattr(openai, kind)(base_url=f"http://127.0.0.1:{service.port}/v1",
                                 **{"api_key": "none", "timeout": PATIENCE_S, "max_retries": 0, **options})


class OpenAiCase(unittest.TestCase):
    maxDiff = 2000

    def expect_known(self, client):
        answer = ask(client, False, completion())
        self.assertEqual((answer.choices[0].text, answer.choices[0].finish), (ANSWER, "length"))

    def refused(self, call, kind: str, status: int, code: str | None = None, param: str | None = None):
        with self.assertRaises(getattr(openai, kind)) as caught:
            call()
        error = caught.exception
        self.assertIs(type(error), getattr(openai, kind))
        self.assertEqual((error.status_code, error.code, error.param), (status, code, param), error.body)
        self.assertTrue(error.request_id)
        self.assertEqual(set(error.body), {"message", "type", "param", "code"})
        count()
        return error


@unittest.skipIf(openai is None, "the OpenAI client is not installed")
class OpenAi(OpenAiCase):
    """Every way to ask gives the same answer, and every refusal its class."""

    @classmethod
    def setUpClass(cls):
        cls.service = Service("--embedded", *EXACT, "--set", "gateway.max_body_bytes=1MiB")
        cls.client = client_of(cls.service)

    @classmethod
    def tearDownClass(cls):
        assert cls.service.stop() == 0, cls.service.output()

    def in_all_ways(self, chat: bool, fields: dict) -> Answer:
        whole = ask(self.client, chat, fields)
        streamed = ask_stream(self.client, chat, fields)

        async def both():
            async with client_of(self.service, "AsyncOpenAI") as client:
                return await asyncio.gather(ask_async(client, chat, fields), ask_stream_async(client, chat, fields))

        for way, other in zip(("stream", "async", "async stream"), [streamed, *asyncio.run(both())]):
            self.assertEqual(other.choices, whole.choices, way)
            # What was known of the prompt is no part of the answer, and not less the second time.
            known = whole.usage.prompt_tokens_details.cached_tokens
            self.assertGreaterEqual(other.usage.prompt_tokens_details.cached_tokens, known, way)
            other.usage.prompt_tokens_details.cached_tokens = known
            self.assertEqual(other.usage, whole.usage, way)
        return whole

    def test_completions(self):
        answers = {}
        for name, fields in COMPLETIONS.items():
            with self.subTest(name):
                answers[name] = self.in_all_ways(False, fields)
                count()
        choices = {name: [answer.choices[i] for i in sorted(answer.choices)] for name, answer in answers.items()}
        for name in ("greedy", "token ids"):
            self.assertEqual((choices[name][0].text, choices[name][0].finish), (ANSWER, "length"))
        usage = answers["greedy"].usage
        self.assertEqual((usage.prompt_tokens, usage.completion_tokens, usage.total_tokens),
                         (len(TEXT["ids"]), len(TEXT["greedy"]), len(TEXT["ids"]) + len(TEXT["greedy"])))
        self.assertEqual((choices["stop string"][0].text, choices["stop string"][0].finish),
                         (ANSWER[:ANSWER.index(WORD)], "stop"))
        self.assertGreater(len({choice.text for choice in choices["three choices"]}), 1)
        self.assertEqual(len(choices["two prompts"]), 4)
        self.assertEqual(answers["two prompts"].usage.completion_tokens, 48)
        self.assertNotEqual(choices["penalties"][0].text, ANSWER[:len(choices["penalties"][0].text)])
        favoured = self.client.completions.create(model="sample", prompt=[BIASED], max_tokens=1, echo=True,
                                                  temperature=0).choices[0]
        repeated = choices["a favoured token"][0].text
        self.assertEqual(repeated, repeated[:len(repeated) // 5] * 5)
        self.assertTrue(repeated and favoured.text.startswith(repeated[:len(repeated) // 5]))
        self.check_logprobs(choices["logprobs"][0], 12, 3)
        self.assertEqual(ANSWER.find("".join(t for t, _, _ in choices["logprobs"][0].logprobs)), 0)
        echo = choices["echo"][0]
        self.assertTrue(echo.text.startswith(TEXT["text"]))
        self.assertIsNone(echo.logprobs[0][1])  # nothing stands before the first token
        self.assertTrue(all(logprob <= 0 for _, logprob, _ in echo.logprobs[1:]))
        self.assertTrue("".join(token for token, _, _ in echo.logprobs).endswith(echo.text), echo)

    def check_logprobs(self, choice: Choice, tokens: int, alternatives: int):
        """Greedy: each token is the likeliest of those shown beside it."""
        self.assertEqual(len(choice.logprobs), tokens)
        for token, logprob, top in choice.logprobs:
            top = dict(top)
            self.assertEqual(len(top), alternatives)
            self.assertEqual(max(top, key=top.get), token)
            self.assertEqual(top[token], logprob)
            self.assertLessEqual(logprob, 0)
        self.assertEqual("".join(token for token, _, _ in choice.logprobs), choice.text)

    def test_chats(self):
        answers = {}
        for name, fields in CHATS.items():
            with self.subTest(name):
                answers[name] = self.in_all_ways(True, fields)
                count()
        greedy = answers["greedy"].choices[0]
        self.assertEqual((greedy.text, greedy.finish), (CHAT_ANSWER, CHAT_FINISH))
        self.assertEqual(answers["greedy"].usage.prompt_tokens, len(CHAT["ids"]))
        self.assertEqual(answers["the older name of the limit"].choices[0].finish, "length")
        self.assertEqual(answers["the older name of the limit"].usage.completion_tokens, 5)
        self.assertGreater(len({c.text for c in answers["three choices"].choices.values()}), 1)
        self.check_logprobs(answers["logprobs"].choices[0], 8, 4)
        stopped = answers["stop string"].choices[0]
        self.assertEqual((stopped.text, stopped.finish),
                         (CHAT_ANSWER[:CHAT_ANSWER.index(CHAT_ANSWER.split()[2])], "stop"))

    def test_the_stream_helper(self):
        with self.client.chat.completions.stream(model="sample", messages=MESSAGES, max_tokens=WHOLE,
                                                 temperature=0) as stream:
            text = "".join(event.delta for event in stream if event.type == "content.delta")
            final = stream.get_final_completion()
        self.assertEqual(text, CHAT_ANSWER)
        self.assertEqual(final.choices[0].message.content, CHAT_ANSWER)
        self.assertEqual(final.choices[0].message.role, "assistant")
        count()

    def test_raw_answers_have_request_ids(self):
        raw = self.client.completions.with_raw_response.create(**completion(),
                                                               extra_headers={"x-request-id": "mine-1"})
        self.assertEqual(raw.headers["x-request-id"], "mine-1")
        self.assertEqual(raw.parse().choices[0].text, ANSWER)
        count()

    def test_models(self):
        models = list(self.client.models.list())
        self.assertEqual([m.id for m in models], ["sample"])
        self.assertEqual((models[0].object, models[0].owned_by), ("model", "millrace"))
        self.assertEqual(self.client.models.retrieve("sample"), models[0])

        async def ids():
            async with client_of(self.service, "AsyncOpenAI") as client:
                return [model.id async for model in client.models.list()]

        self.assertEqual(asyncio.run(ids()), ["sample"])
        count()

    def test_refusals_have_their_classes(self):
        text, chats, bad = self.client.completions, self.client.chat.completions, ("BadRequestError", 400)

        def create(**fields):
            return lambda: text.create(**{**completion(), **fields})

        self.refused(create(temperature=9), *bad, "invalid_value", "temperature")
        self.refused(create(max_tokens="many"), *bad, "invalid_type", "max_tokens")
        self.refused(create(stream=True, temperature=9), *bad, "invalid_value", "temperature")
        self.refused(create(prompt=[5] * MAX_CONTEXT), *bad, "context_length_exceeded", "prompt")
        self.refused(create(prompt=[VOCABULARY]), *bad, "invalid_value", "prompt[0]")
        self.refused(create(suffix="Amen."), *bad, "unsupported_parameter", "suffix")
        self.refused(lambda: chats.create(model="sample", messages=[]), *bad, "missing_required_parameter",
                     "messages")
        self.refused(lambda: chats.create(model="sample", messages=MESSAGES, response_format={"type": "json_object"}),
                     *bad, "unsupported_parameter", "response_format.type")
        self.refused(create(model="gpt-5"), "NotFoundError", 404, "model_not_found", "model")
        self.refused(lambda: self.client.models.retrieve("gpt-5"), "NotFoundError", 404, "model_not_found", "model")
        self.refused(lambda: self.client.embeddings.create(model="sample", input="a"), "NotFoundError", 404,
                     "route_not_found")
        self.refused(lambda: self.client.responses.create(model="sample", input="a"), "NotFoundError", 404,
                     "route_not_found")
        for size in (1 << 20, 8 << 20):
            self.refused(create(user="x" * size), "APIStatusError", 413, "body_too_large")
        self.expect_known(self.client)

    def test_refusals_of_the_async_client(self):
        async def create(**fields):
            async with client_of(self.service, "AsyncOpenAI") as client:
                await client.completions.create(**{**completion(), **fields})

        self.refused(lambda: asyncio.run(create(top_p=0)), "BadRequestError", 400, "invalid_value", "top_p")
        self.refused(lambda: asyncio.run(create(model="x")), "NotFoundError", 404, "model_not_found", "model")
        self.expect_known(self.client)

    def test_no_server(self):
        with self.assertRaises(openai.APIConnectionError):
            openai.OpenAI(base_url="http://127.0.0.1:1/v1", api_key="none", max_retries=1).models.list()
        count()

    def expect_freed(self, before: float):
        wait_for("one more client gone", lambda: clients_gone(self.service) == before + 1, PATIENCE_S)
        wait_for("no sequence running", lambda: self.service.metric("vllm:num_requests_running") == 0, PATIENCE_S)
        self.expect_known(self.client)
        count()

    def test_a_timeout_frees_the_sequence(self):
        # Sixteen answers of a whole context: more than any machine makes in this time.
        fields = completion(MAX_CONTEXT - len(TEXT["ids"]), n=16, temperature=1, extra_body={"ignore_eos": True})
        for stream, timeout in ((False, 0.5), (True, openai.Timeout(PATIENCE_S, read=1e-4))):
            before = clients_gone(self.service)
            with self.assertRaises(openai.APITimeoutError):
                for _ in self.client.with_options(timeout=timeout).completions.create(**fields, stream=stream):
                    pass
            self.expect_freed(before)

    def test_leaving_a_stream_frees_the_sequence(self):
        fields = completion(MAX_CONTEXT - len(TEXT["ids"]), n=8, stream=True, extra_body={"ignore_eos": True})
        before = clients_gone(self.service)
        with self.client.completions.create(**fields) as stream:
            next(stream)
        self.expect_freed(before)

        async def leave():
            async with client_of(self.service, "AsyncOpenAI") as client:
                started = asyncio.Event()

                async def read():
                    async for _ in await client.completions.create(**fields):
                        started.set()

                task = asyncio.create_task(read())
                await started.wait()
                task.cancel()
                with self.assertRaises(asyncio.CancelledError):
                    await task

        asyncio.run(leave())
        self.expect_freed(before + 1)

    def test_many_requests_of_one_async_client(self):
        async def many():
            async with client_of(self.service, "AsyncOpenAI") as client:
                return await asyncio.gather(*(ask_stream_async(client, i % 2 == 1, COMPLETIONS["greedy"] if i % 2 == 0
                                                               else CHATS["greedy"]) for i in range(48)))

        for i, answer in enumerate(asyncio.run(many())):
            self.assertEqual(answer.choices[0].text, CHAT_ANSWER if i % 2 else ANSWER, i)
        count()


@unittest.skipIf(openai is None, "the OpenAI client is not installed")
class OpenAiOverload(OpenAiCase):
    """A server with room for one sequence running, one waiting in the cell and one in the queue."""

    def overloaded(self, status: str, kind: str):
        service = Service("--embedded", *EXACT, "--set", "cache.max_sequences=1", "--set", "scheduler.max_waiting=1",
                          "--set", "gateway.max_queued_requests=1", "--set", f"gateway.overload_status={status}",
                          "--set", "gateway.api_keys=[\"the key\"]")
        try:
            client = client_of(service, api_key="the key")
            self.refused(lambda: client_of(service, api_key="a key").models.list(), "AuthenticationError", 401,
                         "invalid_api_key")
            for _ in range(20):  # Retry-After follows from how quickly requests have ended of late
                self.expect_known(client)
            fields = completion(MAX_CONTEXT - len(TEXT["ids"]), stream=True, extra_body={"ignore_eos": True})
            # The queue's place is free again when its sequence has gone to the cell.
            blockers = []
            while len(blockers) < 3:
                try:
                    blockers.append(client.completions.create(**fields))
                except getattr(openai, kind):
                    pass
            error = self.refused(lambda: client.completions.create(**completion()), kind, int(status),
                                 "server_is_overloaded", "gateway.max_queued_requests")
            self.assertGreaterEqual(int(error.response.headers["retry-after"]), 1)
            self.expect_retries_to_succeed(service, blockers)
        finally:
            self.assertEqual(service.stop(), 0, service.output())

    def expect_retries_to_succeed(self, service: Service, blockers: list):
        refusals = service.metric("millrace_admission_rejections_total")
        patient = client_of(service, api_key="the key", max_retries=20)

        async def ask_patiently():
            async with client_of(service, "AsyncOpenAI", api_key="the key", max_retries=20) as client:
                raw = await client.completions.with_raw_response.create(**completion())
                return raw.retries_taken, raw.parse().choices[0].text

        def ask_sync():
            raw = patient.completions.with_raw_response.create(**completion())
            return raw.retries_taken, raw.parse().choices[0].text

        with concurrent.futures.ThreadPoolExecutor() as pool:
            waiting = [pool.submit(ask_sync), pool.submit(asyncio.run, ask_patiently())]
            wait_for("both refused", lambda: service.metric("millrace_admission_rejections_total") >= refusals + 2,
                     PATIENCE_S)
            for blocker in blockers:
                blocker.close()
            for one in waiting:
                retries, text = one.result(PATIENCE_S)
                self.assertGreaterEqual(retries, 1)
                self.assertEqual(text, ANSWER)
                count()

    def test_503(self):
        self.overloaded("503", "InternalServerError")

    def test_429(self):
        self.overloaded("429", "RateLimitError")


@unittest.skipIf(openai is None, "the OpenAI client is not installed")
class OpenAiCluster(OpenAiCase):
    """The same against 2 x 2 ranks under mpirun, one of which dies."""

    def test_answers_and_a_death(self):
        service = Service("--stages", "2", "--lanes", "2", *EXACT, "--set", "cell.restart_backoff_min_ms=50")
        try:
            client = client_of(service)
            self.expect_known(client)
            answer = ask_stream(client, True, CHATS["greedy"])
            self.assertEqual((answer.choices[0].text, answer.choices[0].finish), (CHAT_ANSWER, CHAT_FINISH))
            fields = completion(MAX_CONTEXT - len(TEXT["ids"]), extra_body={"ignore_eos": True})
            whole = ask(client, False, fields).choices[0].text
            text = ""
            for i, event in enumerate(client.completions.create(stream=True, **fields)):
                text += event.choices[0].text if event.choices else ""
                if i == 0:
                    os.kill(service.ranks()[-1], signal.SIGKILL)
            self.assertEqual(text, whole)  # a pause, and nothing else that the client sees
            # What comes while no cell is there is refused; the client's own retries carry it over.
            os.kill(service.ranks()[-1], signal.SIGKILL)
            self.expect_known(client_of(service, max_retries=50))
            count()
        finally:
            self.assertEqual(service.stop(), 0, service.output())


# --- curl -------------------------------------------------------------------------------------------------

class Curl(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.service = Service("--embedded", *EXACT, "--set", "gateway.max_body_bytes=4MiB")
        cls.url = f"http://127.0.0.1:{cls.service.port}"
        cls.completions = cls.url + "/v1/completions"
        cls.body = json.dumps(completion())

    @classmethod
    def tearDownClass(cls):
        assert cls.service.stop() == 0, cls.service.output()

    def curl(self, *arguments: str, data: str | None = None) -> subprocess.CompletedProcess:
        """With data: a POST of it, read from standard input."""
        post = ["-H", "Content-Type: application/json", "--data-binary", "@-"] if data is not None else []
        result = subprocess.run(["curl", "-sS", "--max-time", str(PATIENCE_S), *post, *arguments], input=data,
                                capture_output=True, text=True, timeout=PATIENCE_S + 10, check=False)
        self.assertEqual(result.returncode, 0, result.stderr)
        count()
        return result

    def expect_known(self, text: str):
        self.assertEqual(json.loads(text)["choices"][0]["text"], ANSWER)

    def expect_stream(self, text: str):
        events = [line.removeprefix("data: ") for line in text.splitlines() if line]
        self.assertEqual(events.pop(), "[DONE]")
        self.assertEqual("".join(json.loads(e)["choices"][0]["text"] for e in events), ANSWER)

    def test_streaming(self):
        stream = json.dumps(completion(stream=True))
        result = self.curl("-N", "-i", self.completions, data=stream)
        head, _, body = result.stdout.partition("\n\n")
        self.assertRegex(head, r"(?i)^HTTP/1.1 200")
        self.assertRegex(head, r"(?i)content-type: text/event-stream")
        self.assertRegex(head, r"(?i)transfer-encoding: chunked")
        self.expect_stream(body)

    def test_events_arrive_one_by_one(self):
        long = json.dumps(completion(MAX_CONTEXT - len(TEXT["ids"]), n=8, stream=True, ignore_eos=True))
        with subprocess.Popen(["curl", "-sN", "-d", long, "-H", "Content-Type: application/json", self.completions],
                              stdout=subprocess.PIPE, text=True) as curl:
            for _ in range(5):
                self.assertTrue(curl.stdout.readline().startswith("data: "))
                self.assertEqual(curl.stdout.readline(), "\n")
            # They are here while the server still works on the rest.
            wait_for("running", lambda: self.service.metric("vllm:num_requests_running") > 0, PATIENCE_S)
            curl.terminate()
        wait_for("free", lambda: self.service.metric("vllm:num_requests_running") == 0, PATIENCE_S)
        count()

    def test_one_connection_for_several_requests(self):
        connects = "%{num_connects}\n"
        result = self.curl("-H", "Content-Type: application/json", "-d", self.body, "-w", connects,
                           self.completions, self.completions, self.completions)
        answers = re.findall(r"(\{.*\})(\d)\n", result.stdout)
        self.assertEqual([n for _, n in answers], ["1", "0", "0"])
        for text, _ in answers:
            self.expect_known(text)
        # Neither a stream nor a refusal ends the connection.
        for body in (completion(8, stream=True), completion(temperature=9)):
            result = self.curl("-H", "Content-Type: application/json", "-d", json.dumps(body), "-w",
                               "connects " + connects, self.completions, self.completions)
            self.assertEqual(re.findall(r"connects (\d)", result.stdout), ["1", "0"])

    def test_http_1_0(self):
        self.expect_known(self.curl("--http1.0", self.completions, data=self.body).stdout)
        result = self.curl("--http1.0", "-N", "-i", self.completions, data=json.dumps(completion(stream=True)))
        head, _, body = result.stdout.partition("\n\n")
        self.assertNotRegex(head, r"(?i)transfer-encoding")
        self.assertRegex(head, r"(?i)connection: close")
        self.expect_stream(body)

    def test_expect_100_continue(self):
        large = json.dumps(completion(user="x" * (2 << 20)))  # a field that changes nothing
        result = self.curl("-v", "-H", "Expect: 100-continue", self.completions, data=large)
        self.assertIn("HTTP/1.1 100 Continue", result.stderr)
        self.expect_known(result.stdout)
        too_large = json.dumps(completion(user="x" * (5 << 20)))
        result = self.curl("-H", "Expect: 100-continue", "-w", "\n%{http_code} %{size_upload}", self.completions,
                           data=too_large)
        self.assertEqual(result.stdout.splitlines()[-1], "413 0")  # nothing was sent in vain
        self.assertEqual(json.loads(result.stdout.splitlines()[0])["error"]["code"], "body_too_large")

    def test_chunked_upload(self):
        chunked = ["-H", "Transfer-Encoding: chunked"]
        self.expect_known(self.curl(*chunked, self.completions, data=self.body).stdout)
        large = json.dumps(completion(user="x" * (2 << 20)))
        self.expect_known(self.curl(*chunked, "-H", "Expect:", self.completions, data=large).stdout)
        result = self.curl(*chunked, "-H", "Expect:", "-w", "\n%{http_code}", self.completions,
                           data=json.dumps(completion(user="x" * (5 << 20))))
        self.assertEqual(result.stdout.splitlines()[-1], "413")

    def test_other_forms(self):
        self.expect_known(self.curl("--http2", self.completions, data=self.body).stdout)  # asks for an upgrade
        self.expect_known(self.curl("--compressed", self.completions, data=self.body).stdout)
        self.expect_known(self.curl("-H", "Content-Type: Application/JSON; charset=utf-8", "-H", "Accept: */*",
                                    "-H", "Authorization: Bearer none", self.completions, data=self.body).stdout)
        self.assertRegex(self.curl("-I", self.url + "/health/ready").stdout, r"^HTTP/1.1 200")
        self.assertRegex(self.curl("-i", "-X", "OPTIONS", self.completions).stdout, r"(?i)allow: POST, OPTIONS")
        result = self.curl("--path-as-is", "-w", " %{http_code}", self.url + "/v1/../metrics")
        self.assertTrue(result.stdout.endswith(" 404"))

    def test_many_at_once(self):
        with tempfile.TemporaryDirectory() as folder:
            outputs = [pathlib.Path(folder, str(i)) for i in range(16)]
            transfers = [a for path in outputs for a in ("-o", str(path), self.completions)]
            self.curl("--parallel", "-H", "Content-Type: application/json", "-d", self.body, *transfers)
            for path in outputs:
                self.expect_known(path.read_text())


# --- wrk --------------------------------------------------------------------------------------------------

WRK_SCRIPT = """
wrk.method, wrk.path = "POST", "/v1/completions"
wrk.headers["Content-Type"] = "application/json"
wrk.body = [==[BODY]==]
local threads = {}
function setup(thread) table.insert(threads, thread) end
function init() wrong, right = 0, 0 end
function response(status, headers, body)
  if status == 200 and body:find([==[TEXT]==], 1, true) then right = right + 1 else wrong = wrong + 1 end
end
function done(summary)
  local right, wrong, e = 0, 0, summary.errors
  for _, thread in ipairs(threads) do right, wrong = right + thread:get("right"), wrong + thread:get("wrong") end
  print(string.format("right=%d wrong=%d requests=%d connect=%d read=%d write=%d status=%d timeout=%d", right, wrong,
                      summary.requests, e.connect, e.read, e.write, e.status, e.timeout))
end
"""


class Wrk(unittest.TestCase):
    def test_no_error_under_load(self):
        service = Service("--embedded", *EXACT)
        try:
            body = completion(8)
            text = service.post("/v1/completions", body)[1]["choices"][0]["text"]
            self.assertTrue(text and ANSWER.startswith(text))
            in_the_answer = '"text":' + json.dumps(text)
            with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
                script.write(WRK_SCRIPT.replace("BODY", json.dumps(body)).replace("TEXT", in_the_answer))
                script.flush()
                result = subprocess.run(["wrk", "-t2", "-c48", "-d4s", "--timeout", f"{PATIENCE_S}s", "-s",
                                         script.name, f"http://127.0.0.1:{service.port}"],
                                        capture_output=True, text=True, timeout=PATIENCE_S, check=True)
            numbers = {name: int(value) for name, value in re.findall(r"(\w+)=(\d+)", result.stdout)}
            self.assertGreater(numbers["requests"], 48, result.stdout)
            self.assertGreaterEqual(numbers["right"], numbers["requests"])
            for name in ("wrong", "connect", "read", "write", "status", "timeout"):
                self.assertEqual(numbers[name], 0, result.stdout)
            self.assertNotIn("Non-2xx", result.stdout)
            self.assertNotIn("Socket errors", result.stdout)
            # What wrk left behind when it stopped is cancelled.
            wait_for("free", lambda: service.metric("vllm:num_requests_running") == 0, PATIENCE_S)
            self.assertEqual(service.post("/v1/completions", completion())[1]["choices"][0]["text"], ANSWER)
            count()
        finally:
            self.assertEqual(service.stop(), 0, service.output())


# --- 200 streams ------------------------------------------------------------------------------------------

STREAMS = 200


def stream_request(i: int) -> dict:
    """Request i: a piece of the held-out text, a temperature, a seed."""
    words = pathlib.Path(MODEL, "held-out.txt").read_text().split()
    prompt = " ".join(words[i * 37:i * 37 + 3 + i % 50])
    return {"model": "sample", "prompt": prompt, "max_tokens": 16 + i % 17, "temperature": 0.5 + i % 8 / 8,
            "seed": 1000 + i, "top_p": (1.0, 0.9)[i % 2], "top_k": (0, 40, 200)[i % 3], "stream": True}


class Streams(unittest.TestCase):
    """All at once on 2 x 2 ranks under mpirun, each against itself alone."""

    def read(self, service: Service, request: dict, begun=lambda: None) -> tuple[str, str]:
        connection = service.connect(PATIENCE_S)
        connection.request("POST", "/v1/completions", json.dumps(request), {"Content-Type": "application/json"})
        text, finish, done = "", None, False
        with connection.getresponse() as response:
            assert response.status == 200, response.read()
            begun()
            for line in response:
                data = line.decode().strip().removeprefix("data: ")
                if data == "[DONE]":
                    done = True
                elif data:
                    assert not done and finish is None, data
                    choice = json.loads(data)["choices"][0]
                    text, finish = text + choice["text"], choice["finish_reason"]
        connection.close()
        assert done and finish in ("stop", "length"), (done, finish)
        return text, finish

    def test_each_has_the_text_it_has_alone(self):
        service = Service("--stages", "2", "--lanes", "2")
        try:
            requests = [stream_request(i) for i in range(STREAMS)]
            alone = [self.read(service, request) for request in requests]
            self.assertGreater(len({text for text, _ in alone}), STREAMS * 0.9)  # they do differ
            together: list = [None] * STREAMS
            everyone = threading.Barrier(STREAMS)  # nobody reads on before all have been accepted

            def ask(i: int):
                together[i] = self.read(service, requests[i], lambda: everyone.wait(PATIENCE_S))

            threads = [threading.Thread(target=ask, args=(i,)) for i in range(STREAMS)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            for i in range(STREAMS):
                self.assertEqual(together[i], alone[i], requests[i])
                count()
            wait_for("free", lambda: service.metric("vllm:num_requests_running") == 0, PATIENCE_S)
        finally:
            self.assertEqual(service.stop(), 0, service.output())


def main() -> int:
    wanted = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
    needs_package = not wanted or any(name.startswith("OpenAi") for name in wanted)
    if needs_package and openai is None:
        if VENV_PYTHON.exists():
            os.execv(VENV_PYTHON, [str(VENV_PYTHON), *sys.argv])
        print("skipped: the OpenAI client is not installed; run scripts/test-clients-venv")
    program = unittest.main(verbosity=2, exit=False)
    print(f"clients: {cases} cases", flush=True)
    if not program.result.wasSuccessful():
        return 1
    return 77 if program.result.skipped else 0


if __name__ == "__main__":
    sys.exit(main())
