"""What the tests with clients and with bad input share. Standard library only.

Requests whose answers Transformers has computed (models/sample/reference.json); they hold for a server started
with EXACT, whose KV cache keeps the reference's f32.
"""

import json
import pathlib

from service import MODEL, Service

EXACT = ["--set", "cache.kv_dtype=f32"]
PROMPTS = json.loads(pathlib.Path(MODEL, "reference.json").read_text())["prompts"]
CONFIG = json.loads(pathlib.Path(MODEL, "config.json").read_text())
MAX_CONTEXT, VOCABULARY = CONFIG["max_position_embeddings"], CONFIG["vocab_size"]

# A text and its continuation, which does not end by itself.
TEXT = next(p for p in PROMPTS if p.get("text") and not p["greedy_ends_at"])
# A conversation and its answer, with the reason why it ends there.
CHAT = next(p for p in PROMPTS if "messages" in p and "tools" not in p)
CHAT_ANSWER = CHAT["greedy_text"].split("<|im_end|>")[0]
CHAT_FINISH = "stop" if CHAT["greedy_ends_at"] else "length"


def completion(tokens: int = len(TEXT["greedy"]), **fields) -> dict:
    """A body for /v1/completions; None removes a field. With all tokens the answer is TEXT["greedy_text"]."""
    body = {"model": "sample", "prompt": TEXT["text"], "max_tokens": tokens, "temperature": 0, **fields}
    return {name: value for name, value in body.items() if value is not None}


def clients_gone(service: Service) -> float:
    """Requests that have ended because their client had."""
    return sum(float(line.rsplit(" ", 1)[1]) for line in service.get("/metrics")[1].splitlines()
               if line.startswith("millrace_http_requests_total") and 'status="499"' in line)
