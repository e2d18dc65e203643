"""The simulated provider itself, apart from how its bytes travel.

`World.handle` takes a request and gives a `Response`, or raises `Broken` where a real connection would end;
the httpx transport and the socket server only carry that over. It lives on the loop it is used on: on another
one the machine, the buckets and the clock of the faults start afresh, while the counts go on.
"""

import asyncio
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from functools import partial
from hashlib import blake2b
from typing import Any, TypeAlias
from urllib.parse import parse_qsl

import orjson

from llmlab.sim import anthropic_ask, aside, replies
from llmlab.sim.anthropic_batch import AnthropicBatches
from llmlab.sim.batches import BatchPace, Result
from llmlab.sim.buckets import Allowance
from llmlab.sim.faults import Faults
from llmlab.sim.formed import Structured, checked, spoil
from llmlab.sim.kinds import NONE
from llmlab.sim.openai_batch import OpenAIBatches
from llmlab.sim.physics import Change, Full, Physics, Seat
from llmlab.sim.place import ANTHROPIC, OPENAI, Dialect, Pace, Place, Visit, facts, poor
from llmlab.sim.script import Body, Response, Script, of_body, of_events, whole
from llmlab.sim.tally import Tally
from llmlab.sim.wire import Answer, Ask, Broken, Errand, Headers, Refusal, Stamp, http_date
from llmlab.types import JSON

Reach: TypeAlias = Callable[[int], Awaitable[None]]

_JSON = "application/json"
_SSE = "text/event-stream; charset=utf-8"
_HTML = b"<html><head><title>502 Bad Gateway</title></head><body><h1>502 Bad Gateway</h1></body></html>"
_DRIP = 0.05  # seconds per token of a slow drip where the physics itself takes none


class World:
    """A simulated provider of both dialects. Parameters as for `llmlab.sim.transport.Simulator`."""

    def __init__(
        self,
        *,
        seed: int = 0,
        physics: Physics | None = None,
        faults: Faults | None = None,
        keys: Iterable[str] | None = None,
        models: Iterable[str] | None = None,
        say: Callable[[Ask], str] | None = None,
        changes: Iterable[Change] = (),
        batches: BatchPace | None = None,
        structured: Structured = "json_schema",
    ) -> None:
        self.structured = checked(structured)
        self.seed = seed
        self.physics = Physics() if physics is None else physics
        self.changes = tuple(changes)
        self.faults = Faults() if faults is None else faults
        self.keys = None if keys is None else frozenset(keys)
        self.models = None if models is None else tuple(models)
        self.say = say
        self.pace = BatchPace() if batches is None else batches
        self._desks: list[tuple[Dialect, OpenAIBatches | AnthropicBatches]] = [
            (ANTHROPIC, AnthropicBatches(self.pace)),
            (OPENAI, OpenAIBatches(self.pace)),
        ]
        self.tally = Tally()
        self._seen: dict[bytes, int] = {}
        self._place: Place | None = None

    def stats(self) -> JSON:
        """Give the provider's own counts since it was made; see `llmlab.sim.tally.Tally`."""
        return self.tally.table(self._place.engine.queued if self._place else 0)

    async def handle(self, method: str, path: str, headers: Headers, body: bytes, query: str = "") -> Response:
        """Answer one request.

        Raises:
            Broken: the connection ends before the response.
        """
        dialect = ANTHROPIC if path.endswith(ANTHROPIC.path) else OPENAI
        if method != "POST" or not path.endswith(dialect.path):
            for each, desk in self._desks:
                if desk.serves(path):
                    return await self._errand(each, desk, (method, path, dict(parse_qsl(query)), headers, body))
            return await self._aside(method, path, headers, body)
        visit = self._enter(dialect, body)
        try:
            response = await self._serve(visit, headers, body)
        except Refusal as refusal:
            response = self._refuse(visit, refusal)
        except BaseException as error:
            self.tally.statuses["broken" if isinstance(error, Broken) else "left"] += 1
            if visit.pace is not None:
                visit.pace.stop()
            self._leave(visit)
            raise
        if isinstance(response.body, bytes):
            self._leave(visit)
        self.tally.statuses[str(response.status)] += 1
        return response

    def _here(self) -> Place:
        if self._place is None or self._place.loop is not asyncio.get_running_loop():
            past, self._place = self._place, Place(self.physics, self.changes)
            if past is not None:  # its batches go on: virtual time begins anew with each loop, the provider's does not
                self._place.offset = max(self._place.offset, past.unix - self._place.loop.time())
        return self._place

    def _enter(self, dialect: Dialect, body: bytes) -> Visit:
        visit = self._visit(dialect, body)
        self.tally.enter(visit.kind.name)
        self.tally.in_outage += self.faults.down(visit.came - visit.here.began)
        return visit

    def _visit(self, dialect: Dialect, body: bytes, *, left: bool = False) -> Visit:
        here = self._here()
        digest = blake2b(body, digest_size=16).digest()
        nth = self._seen[digest] = self._seen.get(digest, 0) + 1
        drawn = blake2b(digest + b"%d %d" % (self.seed, nth), digest_size=20).digest()
        rng = random.Random(int.from_bytes(drawn[:8]))
        now = here.loop.time()
        kind = self.faults.pick(rng, now - here.began, self.seed) or NONE
        return Visit(dialect, here, Stamp(drawn[8:].hex(), int(now + here.offset)), rng, kind, now, left=left)

    def _leave(self, visit: Visit) -> None:
        if not visit.left:
            visit.left = True
            self.tally.in_flight -= 1
            if visit.seat is not None:
                visit.seat.leave()
            if not visit.whole:
                self.tally.wasted_input += visit.read
                self.tally.wasted_output += 0 if visit.pace is None else visit.pace.written

    async def _serve(self, visit: Visit, headers: Headers, body: bytes) -> Response:
        await asyncio.sleep(visit.here.physics.rtt)
        await self._misfortune(visit)
        aside.authorize(self.keys, headers)
        ask = visit.ask(headers, body, self.structured)
        tokens = replies.input_tokens(ask)
        self._admit(visit, ask, tokens)
        try:
            seat = visit.seat = await visit.here.engine.sit()
        except Full:
            raise Refusal("overloaded") from None
        self.tally.input_tokens += tokens
        visit.read = tokens
        if visit.kind.name in ("html_200", "error_200"):
            return await self._no_answer(visit, seat, tokens)
        answer = self._answer(visit, ask)
        if visit.kind.family == "answer":
            answer = poor(answer, ask, visit.kind.name)
        elif visit.kind.family == "form":
            answer = spoil(answer, ask, visit.kind.name, visit.rng, lambda text: tuple(replies.tokens(text)))
        if ask.stream:
            return self._stream(visit, seat, ask, answer)
        if visit.kind.name == "error_in_stream":  # there is no stream to have it in
            return await self._no_answer(visit, seat, tokens)
        return await self._plain(visit, seat, ask, answer)

    async def _misfortune(self, visit: Visit) -> None:
        """Let happen what happens before a request is even read."""
        kind = visit.kind
        if kind.name in ("stall", "gateway_timeout"):
            await asyncio.sleep(self.faults.stall)
        if kind.name == "reset":
            raise Broken("reset", begun=False)
        if kind.name in ("hangup", "stall"):
            raise Broken("cut", begun=False)
        if kind.family == "refusal":
            raise Refusal(kind.error, wait=self.faults.wait(kind), hint=kind.hint)

    def _admit(self, visit: Visit, ask: Ask, tokens: int) -> None:
        """Check model, context and rate limits, and charge the latter."""
        physics = visit.here.physics
        aside.check(ask, tokens, self.models, physics.context)
        allowance = self._allowance(visit)
        costs = visit.wire.costs(ask, tokens)
        if name := allowance.beyond(costs):
            raise Refusal("too_large_429", facts=facts(allowance, name, visit, ask, costs))
        name, wait = allowance.tightest(costs, visit.now)
        if name:
            raise Refusal("rate_limited", wait=wait, hint=physics.hint, facts=facts(allowance, name, visit, ask, costs))
        allowance.take(costs, visit.now)

    def _allowance(self, visit: Visit) -> Allowance:
        return visit.here.allowance(visit.wire.BUCKETS)

    def _answer(self, visit: Visit, ask: Ask) -> Answer:
        text = self.say(ask) if self.say is not None else None
        median, sigma = visit.here.physics.reply_tokens, visit.here.physics.reply_sigma
        return replies.answer(ask, seed=self.seed, median=median, sigma=sigma, text=text)

    async def _no_answer(self, visit: Visit, seat: Seat, tokens: int) -> Response:
        """Answer 200 with something that is no answer, as late as an answer would come."""
        await seat.reach(visit.here.physics.first(tokens, visit.rng))
        if visit.kind.name == "html_200":
            return whole(200, self._headers(visit), _HTML, "text/html")
        error = visit.wire.error(Refusal("server_error"), f"req_{visit.stamp.id}")[1]
        return whole(200, self._headers(visit), orjson.dumps(error), _JSON)

    async def _plain(self, visit: Visit, seat: Seat, ask: Ask, answer: Answer) -> Response:
        fault = visit.kind.name
        body = orjson.dumps(visit.wire.plain(ask, answer, visit.stamp, fault))
        reach = self._pace(visit, seat, answer)
        await reach(max(1, answer.steps))
        if not fault:
            visit.whole = True
            return whole(200, self._headers(visit), body, _JSON)
        return self._respond(visit, of_body(body, fault, visit.rng), _JSON, reach)

    def _stream(self, visit: Visit, seat: Seat, ask: Ask, answer: Answer) -> Response:
        wire, fault = visit.wire, visit.kind.name
        error = wire.error_event(Refusal("overloaded"), f"req_{visit.stamp.id}")
        script = of_events(wire.stream(ask, answer, visit.stamp, fault), fault, visit.rng, error=error)
        return self._respond(visit, script, _SSE, self._pace(visit, seat, answer))

    def _pace(self, visit: Visit, seat: Seat, answer: Answer) -> Reach:
        """Give the wait for a decoding step, from 1; its tokens count as written when it is over."""
        physics = visit.here.physics
        step = physics.itl
        if visit.kind.name == "slow_drip":
            step = step * 10 or _DRIP
        first = physics.first(answer.input_tokens, visit.rng)
        limited = self._allowance(visit).buckets.get("output-tokens")
        visit.pace = Pace(seat, answer, first=first, step=step, tally=self.tally, limited=limited)
        return visit.pace.reach

    def _respond(self, visit: Visit, script: Script, kind: str, reach: Reach) -> Response:
        headers = self._headers(visit) | {"content-type": kind}
        if script.framing == "length":
            headers["content-length"] = str(script.length)
        if kind == _SSE:
            headers["cache-control"] = "no-cache"
        body = Body(self._play(visit, script, reach), lambda: self._leave(visit))
        return Response(200, headers, body, script.framing)

    async def _play(self, visit: Visit, script: Script, reach: Reach) -> AsyncGenerator[bytes, None]:
        try:
            for left, (after, data) in zip(reversed(range(len(script.pieces))), script.pieces, strict=True):
                if after:
                    await reach(after)
                # before the last piece goes: who has got it need not come back for more
                visit.whole = not left and script.ending == "whole" and visit.kind.harmless
                yield data
            if script.stalls:
                await asyncio.sleep(self.faults.stall)
            if script.ending != "whole":
                raise Broken(script.ending, begun=True)
        finally:
            self._leave(visit)

    def _refuse(self, visit: Visit, refusal: Refusal) -> Response:
        status, error = visit.wire.error(refusal, f"req_{visit.stamp.id}")
        headers = self._headers(visit, levels=refusal.hint not in ("text", "none"))
        headers |= visit.wire.hints(refusal, visit.unix)
        shape = visit.kind.name
        if shape == "bad_gateway_html":
            return whole(502, headers, _HTML, "text/html")
        if shape == "final_500":
            headers["x-should-retry"] = "false"
        body: Any = [error] if shape == "array_error" else error
        if shape == "string_error":
            body = {"error": error["error"]["message"]}
        return whole(status, headers, orjson.dumps(body), _JSON)

    def _headers(self, visit: Visit, *, levels: bool = True) -> dict[str, str]:
        headers = {"date": http_date(int(visit.unix))} | visit.wire.ids(visit.stamp, visit.now - visit.came)
        if levels and visit.here.physics.hint != "none" and (allowance := self._allowance(visit)).buckets:
            headers |= visit.wire.levels(allowance.levels(visit.now), visit.unix)
        return headers

    async def _errand(
        self,
        dialect: Dialect,
        desk: OpenAIBatches | AnthropicBatches,
        asked: tuple[str, str, dict[str, str], Headers, bytes],
    ) -> Response:
        """Answer a request of a Batch API; faults meet it, too, and those of bodies after it was done."""
        method, path, _, headers, _ = asked
        visit = self._visit(dialect, f"{method} {path}".encode(), left=True)
        self.tally.errands += 1
        try:
            await asyncio.sleep(visit.here.physics.rtt)
            await self._misfortune(visit)
            aside.authorize(self.keys, headers)
            errand = Errand(*asked, visit.unix, visit.stamp)
            found = desk.handle(errand, partial(self._row, dialect, headers))
        except Refusal as refusal:
            return self._refuse(visit, refusal)
        kind = "application/x-jsonl" if isinstance(found, bytes) else _JSON
        data = found if isinstance(found, bytes) else orjson.dumps(found)
        fault = visit.kind.name
        if fault == "html_200":
            return whole(200, self._headers(visit), _HTML, "text/html")
        if fault in ("error_200", "error_in_stream"):
            error = visit.wire.error(Refusal("server_error"), f"req_{visit.stamp.id}")[1]
            return whole(200, self._headers(visit), orjson.dumps(error), _JSON)
        return self._respond(visit, of_body(data, fault, visit.rng), kind, _at_once)

    def _row(self, dialect: Dialect, headers: Headers, body: bytes) -> Result:
        """Answer one request of a batch, as it would be answered by itself."""
        visit = self._visit(dialect, b"batch" + body, left=True)
        self.tally.batch_rows += 1
        try:
            ask = self._read_row(visit, headers, body)
        except Refusal as refusal:
            return Result(visit.stamp.id, *dialect.wire.error(refusal, f"req_{visit.stamp.id}"))
        answer = self._answer(visit, ask)
        self.tally.input_tokens += answer.input_tokens
        self.tally.output_tokens += answer.output_tokens
        told = dialect.wire.plain(ask, answer, visit.stamp)
        return Result(visit.stamp.id, 200, told, answer.input_tokens, answer.output_tokens)

    def _read_row(self, visit: Visit, headers: Headers, body: bytes) -> Ask:
        ask = visit.ask(headers, body, self.structured)
        if ask.stream:
            raise Refusal("bad_request", "stream: batches are not streamed", param="stream")
        aside.check(ask, replies.input_tokens(ask), self.models, visit.here.physics.context)
        if visit.rng.random() < self.pace.failing:
            raise Refusal("server_error")
        return ask

    async def _aside(self, method: str, path: str, headers: Headers, body: bytes) -> Response:
        """Answer what is no completion: models, token counts, statistics, wrong paths. No faults here."""
        await asyncio.sleep(self.physics.rtt if self._place is None else self._place.physics.rtt)
        anthropic = path.endswith("/count_tokens") or headers.get("anthropic-version") is not None
        wire = (ANTHROPIC if anthropic else OPENAI).wire
        try:
            if path != aside.STATS:
                aside.authorize(self.keys, headers)
            count = partial(_count, body, headers)
            status, value = aside.look_up(wire, method, path, models=self.models, stats=self.stats, count=count)
        except Refusal as refusal:
            status, value = wire.error(refusal, "req_aside")
        if value is None:
            return whole(status, {}, b"404 page not found\n", "text/plain")
        return whole(status, {}, orjson.dumps(value), _JSON)


async def _at_once(_: int) -> None:
    """Wait for no token: what is not decoded comes as fast as it can."""


def _count(body: bytes, headers: Headers) -> int:
    return replies.input_tokens(anthropic_ask.parse_count(body, headers))
