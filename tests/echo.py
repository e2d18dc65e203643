"""A model that answers with its prompt, in virtual or real time, and keeps what it was asked."""

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import orjson

import llmlab


class Model(httpx.AsyncBaseTransport):
    """Answers "<prompt>" after `seconds`; prompts with a word of `bad` are refused."""

    def __init__(self, seconds: float = 1.0, *, bad: tuple[str, ...] = (), answer: Callable[[str], str] | None = None):
        self.seconds, self.bad = seconds, bad
        self.answer = answer or (lambda prompt: f"<{prompt}>")
        self.asked: list[str] = []
        self.bodies: list[dict[str, Any]] = []
        self.in_flight = self.most = 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        body = orjson.loads(await request.aread())
        prompt = body["messages"][-1]["content"]
        self.asked.append(prompt)
        self.bodies.append(body)
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)
        try:
            await asyncio.sleep(self.seconds)
        finally:
            self.in_flight -= 1
        if any(word in prompt for word in self.bad):
            return httpx.Response(400, json={"error": {"message": "no", "type": "invalid_request_error"}})
        message = {"role": "assistant", "content": self.answer(prompt)}
        usage = {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return httpx.Response(200, json={"model": body["model"], "choices": [choice], "usage": usage})


def lab_on(model: Model, **settings: Any) -> llmlab.Lab:
    return llmlab.Lab("openai:m", api_key="k", transport=model, seed=1, progress=False, **settings)
