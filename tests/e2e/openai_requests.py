"""What the tests with the official OpenAI package ask, and their answers in one form however they were asked for."""

from known_answer import CHAT, CHAT_ANSWER, TEXT, completion

ANSWER = TEXT["greedy_text"]
WORD = ANSWER.split()[3]  # a stop string within the known answer
BIASED = TEXT["greedy"][5]
MESSAGES = CHAT["messages"]
WHOLE = len(CHAT["greedy"])

COMPLETIONS = {
    "greedy": dict(completion()),
    "token ids": dict(completion(), prompt=TEXT["ids"]),
    "sampled": dict(completion(24), temperature=0.9, top_p=0.9, seed=7),
    "three choices": dict(completion(16), n=3, temperature=0.9, seed=3),
    "stop string": dict(completion(), stop=[WORD, "never to be seen"]),
    "logprobs": dict(completion(12), logprobs=3),
    "echo": dict(completion(6), echo=True, logprobs=2),
    "two prompts": dict(completion(12), prompt=[TEXT["text"], "And it came to pass"], n=2, temperature=0.8, seed=1),
    "a favoured token": dict(completion(5), logit_bias={str(BIASED): 100}),
    "penalties": dict(completion(24), presence_penalty=1.5, frequency_penalty=0.5),
    "fields of vLLM": dict(completion(24), temperature=0.8, seed=2, extra_body={
        "top_k": 20, "min_p": 0.02, "repetition_penalty": 1.1, "ignore_eos": True, "return_token_ids": True}),
}

CHATS = {
    "greedy": dict(messages=MESSAGES, max_completion_tokens=WHOLE, temperature=0),
    "the older name of the limit": dict(messages=MESSAGES, max_tokens=5, temperature=0),
    "three choices": dict(messages=[{"role": "user", "content": "Tell me about the sea."}], max_tokens=16, n=3,
                          temperature=1.8, seed=4),
    "logprobs": dict(messages=MESSAGES, max_tokens=8, temperature=0, logprobs=True, top_logprobs=4),
    "stop string": dict(messages=MESSAGES, max_tokens=WHOLE, temperature=0, stop=CHAT_ANSWER.split()[2]),
    "content in parts": dict(messages=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": [
        {"type": "text", "text": "Who are"}, {"type": "text", "text": "you?"}]}], max_tokens=8, temperature=0),
    "tools": dict(messages=MESSAGES, max_tokens=8, temperature=0, tool_choice="auto", tools=[
        {"type": "function", "function": {"name": "get_verse", "parameters": {"type": "object", "properties": {}}}}]),
    "a developer": dict(messages=[{"role": "developer", "content": "Be brief."}, *MESSAGES], max_tokens=8,
                        temperature=0, user="me", metadata={"a": "b"}),
}


class Choice:
    """One choice, whole or gathered from a stream."""

    def __init__(self):
        self.text, self.finish, self.logprobs = "", None, []

    def __eq__(self, other):
        return vars(self) == vars(other)

    def __repr__(self):
        return repr(vars(self))


def logprobs_of(logprobs) -> list:
    """(token, logprob, alternatives) for each token, from either route's form."""
    if logprobs is None:
        return []
    if hasattr(logprobs, "content"):
        return [(t.token, t.logprob, [(a.token, a.logprob) for a in t.top_logprobs]) for t in logprobs.content or []]
    return list(zip(logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs))


class Answer:
    """What a request gave, in the same form however it was asked for."""

    def __init__(self):
        self.choices: dict[int, Choice] = {}
        self.usage = None

    def whole(self, body):
        for part in body.choices:
            choice = self.choices.setdefault(part.index, Choice())
            choice.text = part.message.content if hasattr(part, "message") else part.text
            choice.finish, choice.logprobs = part.finish_reason, logprobs_of(part.logprobs)
        self.usage = body.usage
        return self

    def chunk(self, body):
        """One chunk of a stream with include_usage."""
        assert self.usage is None, "nothing follows the usage"
        if not body.choices:
            self.usage = body.usage
            return
        assert body.usage is None, body
        for part in body.choices:
            chat = hasattr(part, "delta")
            if chat and part.index not in self.choices:
                assert part.delta.role == "assistant", part
            choice = self.choices.setdefault(part.index, Choice())
            assert choice.finish is None, "nothing follows the end of a choice"
            choice.text += (part.delta.content if chat else part.text) or ""
            choice.finish = part.finish_reason
            choice.logprobs += logprobs_of(part.logprobs)


def ask(client, chat: bool, fields: dict) -> Answer:
    create = client.chat.completions.create if chat else client.completions.create
    return Answer().whole(create(**{"model": "sample", **fields}))


def ask_stream(client, chat: bool, fields: dict) -> Answer:
    create = client.chat.completions.create if chat else client.completions.create
    answer = Answer()
    ids = set()
    for chunk in create(**{"model": "sample", **fields}, stream=True, stream_options={"include_usage": True}):
        ids.add((chunk.id, chunk.object, chunk.model, chunk.created))
        answer.chunk(chunk)
    assert len(ids) == 1, ids
    return answer


async def ask_async(client, chat: bool, fields: dict) -> Answer:
    create = client.chat.completions.create if chat else client.completions.create
    return Answer().whole(await create(**{"model": "sample", **fields}))


async def ask_stream_async(client, chat: bool, fields: dict) -> Answer:
    create = client.chat.completions.create if chat else client.completions.create
    answer = Answer()
    stream = await create(**{"model": "sample", **fields}, stream=True, stream_options={"include_usage": True})
    async for chunk in stream:
        answer.chunk(chunk)
    return answer
