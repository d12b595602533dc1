"""Requests that a server must refuse, and odd ones that it must not: tables for bad_input_test.py.

Each names what it sends, the error's param or status, and a part of its message. Standard library only.
"""

import json

from known_answer import MAX_CONTEXT, TEXT, VOCABULARY, completion

MEBIBYTE = 1 << 20
TOKENS = 12  # of the good request's answer


# --- good requests ----------------------------------------------------------------------------------------

def good(**fields) -> dict:
    """A request with a known answer; None removes a field."""
    return completion(TOKENS, **{"return_token_ids": True, **fields})


def post(body: bytes, path: str = "/v1/completions", *headers: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: test", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


GOOD = post(json.dumps(good()).encode())


# --- bodies -----------------------------------------------------------------------------------------------

def chat(*messages, **fields) -> dict:
    return {"model": "sample", "messages": list(messages), "max_tokens": 4, **fields}


HELLO = {"role": "user", "content": "Hello"}
LONG = [5] * MAX_CONTEXT

# (fields that replace those of a good completion, param, part of the message)
COMPLETIONS = [
    ({"model": None}, "model", "model is missing"),
    ({"model": 7}, "model", "must be a string, not a number"),
    ({"prompt": None}, "prompt", "prompt is missing"),
    ({"prompt": 7}, "prompt", "prompt must be a string"),
    ({"prompt": {}}, "prompt", "prompt must be a string"),
    ({"prompt": []}, "prompt", "prompt must be a string"),
    ({"prompt": [[]]}, "prompt[0]", "prompt must be a string"),
    ({"prompt": ["a", 1]}, "prompt[1]", "prompt must be a string"),
    ({"prompt": [1, "a"]}, "prompt[1]", "token id must be an integer"),
    ({"prompt": [1, -1]}, "prompt[1]", f"from 0 to {VOCABULARY - 1}"),
    ({"prompt": [1, VOCABULARY]}, "prompt[1]", f"from 0 to {VOCABULARY - 1}"),
    ({"prompt": [1, 1.5]}, "prompt[1]", "token id must be an integer"),
    ({"prompt": [[1], [2**70]]}, "prompt[1][0]", "token id must be an integer"),
    ({"prompt": ["a"] * 257}, "prompt", "at most 256 prompts"),
    ({"prompt": "", "add_special_tokens": False}, "prompt", "the prompt has no tokens"),
    ({"prompt": LONG}, "prompt", f"maximum context length is {MAX_CONTEXT} tokens"),
    ({"prompt": "God " * 30_000}, "prompt", f"maximum context length is {MAX_CONTEXT} tokens"),
    ({"prompt": LONG[:-8]}, "max_tokens", f"asks for {MAX_CONTEXT - 8 + TOKENS}"),
    ({"max_tokens": 10**18}, "max_tokens", "maximum context length"),
    ({"max_tokens": 0}, "max_tokens", "integer of at least 1"),
    ({"max_tokens": -1}, "max_tokens", "integer of at least 1"),
    ({"max_tokens": 1.5}, "max_tokens", "integer of at least 1"),
    ({"max_tokens": "16"}, "max_tokens", "integer of at least 1"),
    ({"max_tokens": True}, "max_tokens", "integer of at least 1"),
    ({"max_tokens": 2**64}, "max_tokens", "integer of at least 1"),
    ({"min_tokens": TOKENS + 1}, "min_tokens", "must not exceed max_tokens"),
    ({"temperature": -0.1}, "temperature", "a number of at least 0 and at most 2"),
    ({"temperature": 2.1}, "temperature", "at most 2"),
    ({"temperature": "hot"}, "temperature", "a number of at least 0"),
    ({"temperature": True}, "temperature", "a number of at least 0"),
    ({"temperature": [1]}, "temperature", "a number of at least 0"),
    ({"top_p": 0}, "top_p", "greater than 0 and at most 1"),
    ({"top_p": 1.5}, "top_p", "greater than 0 and at most 1"),
    ({"top_p": 1e-60}, "top_p", "greater than 0"),
    ({"top_k": -2}, "top_k", "integer from -1"),
    ({"top_k": 1.5}, "top_k", "integer from -1"),
    ({"min_p": -1}, "min_p", "at least 0 and at most 1"),
    ({"repetition_penalty": 0}, "repetition_penalty", "greater than 0"),
    ({"presence_penalty": 3}, "presence_penalty", "at least -2 and at most 2"),
    ({"frequency_penalty": -3}, "frequency_penalty", "at least -2 and at most 2"),
    ({"seed": 2**64}, "seed", "must be an integer"),
    ({"seed": "lucky"}, "seed", "must be an integer"),
    ({"n": 0}, "n", "integer from 1 to 16"),
    ({"n": 17}, "n", "integer from 1 to 16"),
    ({"n": 16, "prompt": ["a"] * 40}, "n", "more than the 512 choices"),
    ({"best_of": 2}, "best_of", "not served here"),
    ({"logprobs": 21}, "logprobs", "integer from 0 to 20"),
    ({"logprobs": True}, "logprobs", "integer from 0 to 20"),
    ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs", "not available with stream"),
    ({"echo": "yes"}, "echo", "must be true or false, not a string"),
    ({"stream": 1}, "stream", "must be true or false, not a number"),
    ({"stream_options": {"include_usage": True}}, "stream_options", "only accepted together with stream"),
    ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage", "true or false"),
    ({"stop": 5}, "stop", "must be a string or an array of strings"),
    ({"stop": ["a", 5]}, "stop[1]", "must be a string"),
    ({"stop": ["a", ""]}, "stop[1]", "1 to 1024 bytes"),
    ({"stop": "x" * 1025}, "stop", "1 to 1024 bytes"),
    ({"stop": ["a"] * 17}, "stop", "at most 16 stop strings"),
    ({"stop_token_ids": [VOCABULARY]}, "stop_token_ids[0]", "token id must be an integer"),
    ({"stop_token_ids": 7}, "stop_token_ids", "must be an array"),
    ({"logit_bias": []}, "logit_bias", "must be an object"),
    ({"logit_bias": {"God": 1}}, "logit_bias", "must be token ids"),
    ({"logit_bias": {"-1": 1}}, "logit_bias", "must be token ids"),
    ({"logit_bias": {"7": 101}}, "logit_bias.7", "from -100 to 100"),
    ({"logit_bias": {"7": "much"}}, "logit_bias.7", "from -100 to 100"),
    ({"logit_bias": {"7": 1, "07": 1}}, "logit_bias", "names token 7 twice"),
    ({"logit_bias": {str(i): 1 for i in range(1025)}}, "logit_bias", "at most 1024"),
    ({"response_format": {}}, "response_format.type", "needs a type"),
    ({"response_format": {"type": "json_object"}}, "response_format.type", "not served here"),
    ({"suffix": "Amen."}, "suffix", "not served here"),
    ({"guided_json": {"type": "object"}}, "guided_json", "not served here"),
    ({"use_beam_search": True}, "use_beam_search", "not served here"),
]

# (body of a chat, param, part of the message)
CHATS = [
    ({"model": "sample"}, "messages", "at least one message"),
    (chat(), "messages", "at least one message"),
    ({"model": "sample", "messages": "Hello"}, "messages", "must be an array"),
    (chat("Hello"), "messages[0]", "must be an object, not a string"),
    (chat(HELLO, {}), "messages[1].role", "needs a role"),
    (chat({"role": "king", "content": "a"}), "messages[0].role", "\"king\" is not a role"),
    (chat({"role": "user"}), "messages[0].content", "needs content"),
    (chat({"role": "user", "content": 5}), "messages[0].content", "a string or an array of parts"),
    (chat({"role": "user", "content": [5]}), "messages[0].content[0]", "must be an object"),
    (chat({"role": "user", "content": [{"type": "text"}]}), "messages[0].content[0].text", "needs its text"),
    (chat({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}),
     "messages[0].content[0].type", "reads text only"),
    (chat({"role": "assistant", "tool_calls": [{}]}), "messages[0].tool_calls[0].function", "needs a function"),
    (chat(HELLO, tools=[7]), "tools[0]", "must be an object"),
    (chat(HELLO, tools=[{"type": "browser"}]), "tools[0].type", "type \"function\""),
    (chat(HELLO, tools=[{"type": "function", "function": {}}]), "tools[0].function.name",
     "needs the function's name"),
    (chat(HELLO, tool_choice="required"), "tool_choice", "cannot be forced"),
    (chat(HELLO, top_logprobs=3), "top_logprobs", "needs logprobs: true"),
    (chat(HELLO, logprobs=3), "logprobs", "must be true or false"),
    (chat(HELLO, logprobs=True, top_logprobs=21), "top_logprobs", "integer from 0 to 20"),
    (chat(HELLO, max_completion_tokens=5), "max_tokens", "differ"),
    (chat(HELLO, chat_template="{{ 1 }}"), "chat_template", "not served here"),
    (chat(HELLO, chat_template_kwargs=[]), "chat_template_kwargs", "must be an object"),
    (chat(HELLO, continue_final_message=True, add_generation_prompt=True), "continue_final_message", "exclude"),
    (chat(HELLO, modalities=["audio"]), "modalities", "only text"),
    (chat({"role": "user", "content": "God " * 30_000}), "messages", "maximum context length"),
]

# (path, body, param, part of the message)
OTHER_BODIES = [
    ("/tokenize", {"model": "sample"}, "prompt", "prompt or messages is missing"),
    ("/tokenize", {"prompt": 7}, "prompt", "must be a string"),
    ("/detokenize", {"model": "sample"}, "tokens", "tokens is missing"),
    ("/detokenize", {"tokens": [VOCABULARY]}, "tokens[0]", "token id must be an integer"),
    ("/detokenize", {"tokens": "1 2 3"}, "tokens", "must be an array"),
]

VALID = json.dumps(good()).encode()

# (name, body, part of the message): no JSON, or JSON that no server should take
TEXTS = [
    ("nothing", b"", "the request body is empty"),
    ("a brace", b"{", "not valid JSON"),
    ("a list", b"[]", "must be a JSON object, not an array"),
    ("null", b"null", "must be a JSON object, not null"),
    ("a number", b"7", "must be a JSON object, not a number"),
    ("a string", b'"God"', "must be a JSON object, not a string"),
    ("a form", b"model=sample&prompt=God", "not valid JSON"),
    ("half an object", VALID[:-20], "not valid JSON"),
    ("two objects", VALID + VALID, "not valid JSON"),
    ("a trailing comma", VALID[:-1] + b",}", "not valid JSON"),
    ("single quotes", VALID.replace(b'"', b"'"), "not valid JSON"),
    ("a comment", b"/* hello */" + VALID, "not valid JSON"),
    ("NaN", b'{"model": "sample", "prompt": "a", "temperature": NaN}', "not valid JSON"),
    ("infinity", b'{"model": "sample", "prompt": "a", "temperature": -Infinity}', "not valid JSON"),
    ("a number beyond doubles", b'{"model": "sample", "prompt": "a", "temperature": 1e999}', "not valid JSON"),
    ("an octal number", b'{"model": "sample", "prompt": "a", "max_tokens": 010}', "not valid JSON"),
    ("an unknown escape", b'{"model": "sample", "prompt": "a\\x41"}', "not valid JSON"),
    ("a high surrogate alone", b'{"model": "sample", "prompt": "a\\ud800b"}', "surrogate"),
    ("a low surrogate alone", b'{"model": "sample", "prompt": "a\\udc00b"}', "surrogate"),
    ("two high surrogates", b'{"model": "sample", "prompt": "\\ud800\\ud800"}', "surrogate"),
    ("a surrogate in a key", b'{"model": "sample", "\\ud800": 1, "prompt": "a"}', "surrogate"),
    ("a byte that is no UTF-8", b'{"model": "sample", "prompt": "a\xffb"}', "UTF-8"),
    ("an overlong slash", b'{"model": "sample", "prompt": "\xc0\xaf"}', "UTF-8"),
    ("a surrogate in UTF-8", b'{"model": "sample", "prompt": "\xed\xa0\x80"}', "UTF-8"),
    ("a cut UTF-8 character", b'{"model": "sample", "prompt": "\xf0\x9f\x98"}', "UTF-8"),
    ("a code point beyond Unicode", b'{"model": "sample", "prompt": "\xf4\x90\x80\x80"}', "UTF-8"),
    ("Latin-1 in a key", b'{"mod\xe8le": "sample", "prompt": "a"}', "UTF-8"),
    ("UTF-16", VALID.decode().encode("utf-16"), "NUL byte at byte 3; send UTF-8"),
    ("a control character", b'{"model": "sample", "prompt": "a\x01b"}', "control character"),
    ("a NUL byte", b'{"model": "sample", "prompt": "a\x00b"}', "not valid JSON"),
    ("a NUL after the end", VALID + b"\0", "NUL byte"),
    ("a NUL and a second object", VALID + b'\0{"temperature": 2}', "NUL byte"),
    ("65 levels", b'{"user": ' + b"[" * 64 + b"]" * 64 + b"}", "nested deeper than 64 levels"),
    ("200,000 levels of lists", b'{"user": ' + b"[" * 200_000, "nested deeper than 64 levels"),
    ("100,000 levels of objects", b'{"a":' * 100_000, "nested deeper than 64 levels"),
    ("20,000 keys in one object", json.dumps({str(i): 0 for i in range(20_000)}).encode(), "too many keys"),
    ("a number of 500,000 digits", b'{"model": "sample", "prompt": "a", "seed": ' + b"9" * 500_000 + b"}", "JSON"),
]

# Odd, but good: (name, fields that leave the known answer as it is)
HARMLESS = [
    ("unknown fields", {"frobnicate": True, "": {"deep": [1, {"er": None}]}, "mödel": "x"}),
    ("fields that change nothing", {"user": "me", "metadata": {"a": "b"}, "store": False, "suffix": None}),
    ("nulls", {"stop": None, "n": None, "logit_bias": None, "stream_options": None, "seed": None}),
    ("numbers written as floats", {"max_tokens": float(TOKENS), "n": 1.0, "seed": -7.0}),
    ("a prompt of ids", {"prompt": TEXT["ids"]}),
    ("a long unknown key", {"k" * 100_000: 1}),
    ("63 levels in an unknown field", {"user": json.loads("[" * 62 + "]" * 62)}),
]


# --- HTTP itself ------------------------------------------------------------------------------------------

def chunked(body: bytes, end: bytes = b"0\r\n\r\n") -> bytes:
    return f"{len(body):x}\r\n".encode() + body + b"\r\n" + end


def request(*headers: str, body: bytes = b"", line: str = "POST /v1/completions HTTP/1.1", host: str = "Host: test"):
    """Bytes of a request with exactly these headers."""
    lines = [line, *([host] if host else []), *headers, "", ""]
    return "\r\n".join(lines).encode("latin-1") + body


LENGTH = f"Content-Length: {len(VALID)}"
CHUNKED = "Transfer-Encoding: chunked"
SMUGGLED = b"GET /metrics HTTP/1.1\r\nHost: test\r\n\r\n"

# (name, bytes, status, part of the message). All end the connection: one answer, then nothing.
BROKEN_HTTP = [
    # where the body ends
    ("length and chunked", request(LENGTH, CHUNKED, body=VALID), 400, "Transfer-Encoding"),
    ("chunked and length", request(CHUNKED, "Content-Length: 5", body=chunked(VALID)), 400, "Content-Length"),
    ("zero length and chunked", request("Content-Length: 0", CHUNKED, body=chunked(VALID)), 400, "malformed"),
    ("a request in a chunked body", request("Content-Length: 4", CHUNKED, body=b"0\r\n\r\n" + SMUGGLED), 400,
     "malformed"),
    ("chunked twice", request(CHUNKED, CHUNKED, body=chunked(VALID)), 400, "Transfer-Encoding"),
    ("chunked and a cow", request(CHUNKED, "Transfer-Encoding: cow", body=chunked(VALID)), 400, "Transfer-Encoding"),
    ("a coding that looks like chunked", request("Transfer-Encoding: xchunked", body=chunked(VALID)), 501,
     "Transfer-Encoding"),
    ("identity", request("Transfer-Encoding: identity", body=SMUGGLED), 501,
     "only Transfer-Encoding served is chunked"),
    ("identity and a length", request("Transfer-Encoding: identity", LENGTH, body=VALID), 501, "Transfer-Encoding"),
    ("gzip and a length", request("Transfer-Encoding: gzip", LENGTH, body=VALID), 501, "Transfer-Encoding"),
    ("gzip, then chunked", request("Transfer-Encoding: gzip, chunked", body=chunked(VALID)), 501,
     "Transfer-Encoding"),
    ("chunked, then gzip", request("Transfer-Encoding: chunked, gzip", body=SMUGGLED), 501, "Transfer-Encoding"),
    ("chunked, then identity", request("Transfer-Encoding: chunked, identity", body=SMUGGLED), 501,
     "Transfer-Encoding"),
    ("identity, then chunked", request("Transfer-Encoding: identity", CHUNKED, body=chunked(VALID)), 501,
     "Transfer-Encoding"),
    ("quoted chunked", request('Transfer-Encoding: "chunked"', body=chunked(VALID)), 501, "Transfer-Encoding"),
    ("chunked after a vertical tab", request("Transfer-Encoding: \x0bchunked", body=chunked(VALID)), 400,
     "malformed"),
    ("a space before the colon", request("Transfer-Encoding : chunked", body=chunked(VALID)), 400, "malformed"),
    ("chunked in HTTP/1.0", request(CHUNKED, "Connection: keep-alive", body=chunked(VALID),
                                    line="POST /v1/completions HTTP/1.0"), 400, "HTTP/1.0 has no Transfer-Encoding"),
    ("two lengths", request(LENGTH, "Content-Length: 3", body=VALID), 400, "Content-Length"),
    ("a list of lengths", request("Content-Length: 3, 4", body=VALID), 400, "Content-Length"),
    ("a negative length", request("Content-Length: -5", body=VALID), 400, "Content-Length"),
    ("a length with a plus", request("Content-Length: +5", body=VALID), 400, "Content-Length"),
    ("a hexadecimal length", request("Content-Length: 0x10", body=VALID), 400, "Content-Length"),
    ("a length in words", request("Content-Length: many", body=VALID), 400, "Content-Length"),
    ("an empty length", request("Content-Length: ", body=VALID), 400, "Content-Length"),
    ("a length beyond 64 bits", request("Content-Length: 99999999999999999999", body=VALID), 400, "Content-Length"),
    ("a length beyond the limit", request("Content-Length: 999999999999999999", body=VALID), 413,
     "larger than this server"),
    ("a huge body", request(f"Content-Length: {2 * MEBIBYTE}", body=bytes(2 * MEBIBYTE)), 413,
     "larger than this server"),
    ("a huge chunked body", request(CHUNKED, body=chunked(bytes(2 * MEBIBYTE))), 413, "larger than this server"),
    ("many small chunks", request(CHUNKED, body=chunked(b"x" * 16, b"") * 80_000 + b"0\r\n\r\n"), 413, "larger than"),
    ("a chunk size that is no number", request(CHUNKED, body=b"zz\r\nabc\r\n0\r\n\r\n"), 400, "bad chunk"),
    ("a negative chunk size", request(CHUNKED, body=b"-1\r\nabc\r\n0\r\n\r\n"), 400, "bad chunk"),
    ("a chunk size beyond 64 bits", request(CHUNKED, body=b"10000000000000002\r\nab\r\n0\r\n\r\n"), 400, "bad chunk"),
    ("a chunk of 2^64 - 1", request(CHUNKED, body=b"ffffffffffffffff\r\nab\r\n0\r\n\r\n"), 413, "larger than"),
    ("a chunk without its end", request(CHUNKED, body=chunked(VALID).replace(b"}\r\n", b"}XX")), 400, "bad chunk"),
    ("a chunk size without end", request(CHUNKED, body=b"0" * 200_000), 431, "too large"),
    ("trailers without end", request(CHUNKED, body=chunked(VALID, b"0\r\n" + b"A: b\r\n" * 40_000)), 431,
     "too large"),
    ("a length in the trailer", request(CHUNKED, body=chunked(VALID, b"0\r\nContent-Length: 5\r\n\r\n")), 400,
     "malformed"),
    ("a body without a length", request(body=VALID), 400, "the request body is empty"),
    ("a length that is too short", request("Content-Length: 10", body=VALID), 400, "not valid JSON"),
    # the header
    ("a huge header", request(LENGTH, "A: " + "a" * 40_000, body=VALID), 431, "too large"),
    ("too many headers", request(LENGTH, *["A: b"] * 12_000, body=VALID), 431, "too large"),
    ("a header without end", request("A: " + "a" * 200_000), 431, "too large"),
    ("a huge path", request(line=f"GET /{'a' * 40_000} HTTP/1.1"), 431, "too large"),
    ("no Host", request(LENGTH, body=VALID, host=""), 400, "exactly one Host"),
    ("two Hosts", request("Host: other", LENGTH, body=VALID), 400, "exactly one Host"),
    ("a header without a colon", request("Abc", LENGTH, body=VALID), 400, "bad field"),
    ("a header without a name", request(": b", LENGTH, body=VALID), 400, "bad field"),
    ("a space in a header's name", request("A B: c", LENGTH, body=VALID), 400, "bad field"),
    ("a control character in a header", request("A: b\x01c", LENGTH, body=VALID), 400, "bad value"),
    ("NUL in a header", request("A: b\0c", LENGTH, body=VALID), 400, "bad value"),
    ("a bare CR in a header", request("A: b\rc", LENGTH, body=VALID), 400, "bad line ending"),
    ("an expectation", request("Expect: tea", LENGTH, body=VALID), 417, "100-continue"),
    ("a compressed body", request("Content-Encoding: gzip", LENGTH, body=VALID), 415, "must not be compressed"),
    ("a form", request("Content-Type: application/x-www-form-urlencoded", LENGTH, body=VALID), 415,
     "application/json"),
    # the request line
    ("binary", b"\x00\xff\xfe\x80\r\n\r\n", 400, "bad method"),
    ("TLS", bytes.fromhex("16030100a5010000a10303") + bytes(160), 400, "malformed"),
    ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, "HTTP/1.0 and HTTP/1.1"),
    ("HTTP/9.9", request(LENGTH, body=VALID, line="POST /v1/completions HTTP/9.9"), 505, "HTTP/1.0 and HTTP/1.1"),
    ("HTTP/0.9", b"GET /v1/models\r\n\r\n", 400, "malformed"),
    ("a method with an at sign", request(LENGTH, body=VALID, line="P@ST /v1/completions HTTP/1.1"), 400,
     "bad method"),
    ("two spaces", request(LENGTH, body=VALID, line="POST  /v1/completions HTTP/1.1"), 400, "bad target"),
    ("a relative target", request(LENGTH, body=VALID, line="POST v1/completions HTTP/1.1"), 400, "not a valid path"),
    ("CONNECT", request(LENGTH, body=VALID, line="CONNECT other:443 HTTP/1.1"), 400, "not a valid path"),
]

# (name, request line, status, part of the message): no body is due, so the connection stays.
WRONG_TARGETS = [
    ("unknown path", "GET /v1/nothing", 404, "no such route: GET /v1/nothing"),
    ("an unknown path", "GET /nothing", 404, "no such route"),
    ("a slash too many", "GET //v1/models", 404, "no such route"),
    ("a slash at the end", "GET /v1/completions/", 404, "no such route"),
    ("two dots", "GET /v1/../metrics", 404, "no such route"),
    ("a file", "GET /../../../../etc/passwd", 404, "no such route"),
    ("an unknown route with a long name", "GET /" + "a" * 20_000, 404, "no such route: GET /aaa"),
    ("a long method", "A" * 3000 + " /v1/nothing", 404, "no such route: AAA"),
    ("GET of completions", "GET /v1/completions", 405, "answers POST only"),
    ("DELETE of completions", "DELETE /v1/chat/completions", 405, "answers POST only"),
    ("POST of models", "POST /v1/models", 405, "answers GET only"),
    ("a method in small letters", "get /v1/models", 405, "answers GET only"),
    ("a wild escape", "GET /v1/models/%zz", 400, "not a valid path"),
    ("half an escape", "GET /v1/models/%4", 400, "not a valid path"),
    ("an escaped NUL", "GET /v1/models/sample%00", 400, "not a valid path"),
    ("an unknown model", "GET /v1/models/gpt-5", 404, "\"gpt-5\" does not exist here"),
    ("a model that is no UTF-8", "GET /v1/models/%ff%fe", 404, "does not exist here"),
    ("a model with a long name", "GET /v1/models/" + "m" * 20_000, 404, "does not exist here"),
]
