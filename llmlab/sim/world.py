"""The simulated provider itself, apart from how its bytes travel.

`World.handle` takes a request and gives a `Response`, or raises `Broken` where a real connection would end;
the httpx transport and the socket server only carry that over. It lives on the loop it is used on: on another
one the machine, the buckets and the clock of the faults start afresh, while the counts go on.
"""

import asyncio
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from hashlib import blake2b
from typing import Any, TypeAlias

import orjson

from llmlab.sim import anthropic_ask, anthropic_wire, aside, openai_ask, openai_wire, replies
from llmlab.sim.buckets import Allowance
from llmlab.sim.faults import Faults
from llmlab.sim.kinds import NONE, Kind
from llmlab.sim.physics import Change, Full, Physics, Seat
from llmlab.sim.place import Pace, Place
from llmlab.sim.script import Body, Response, Script, of_body, of_events, whole
from llmlab.sim.tally import Tally
from llmlab.sim.wire import Answer, Ask, Broken, Choice, Headers, Refusal, Stamp, Wire, http_date
from llmlab.types import JSON

Reach: TypeAlias = Callable[[int], Awaitable[None]]

_JSON = "application/json"
_SSE = "text/event-stream; charset=utf-8"
_HTML = b"<html><head><title>502 Bad Gateway</title></head><body><h1>502 Bad Gateway</h1></body></html>"
_DRIP = 0.05  # seconds per token of a slow drip where the physics itself takes none


@dataclass(frozen=True, slots=True)
class _Dialect:
    path: str
    parse: Callable[[bytes, Headers], Ask]
    wire: Wire


_OPENAI = _Dialect("/chat/completions", openai_ask.parse, openai_wire)
_ANTHROPIC = _Dialect("/messages", anthropic_ask.parse, anthropic_wire)


@dataclass(slots=True)
class _Visit:
    """One request being served."""

    dialect: _Dialect
    here: Place
    stamp: Stamp
    rng: random.Random
    kind: Kind
    came: float
    seat: Seat | None = None
    pace: Pace | None = None
    read: int = 0
    whole: bool = False
    left: bool = False

    @property
    def wire(self) -> Wire:
        return self.dialect.wire

    @property
    def now(self) -> float:
        return self.here.loop.time()

    @property
    def unix(self) -> float:
        return self.here.loop.time() + self.here.offset


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
    ) -> None:
        self.seed = seed
        self.physics = Physics() if physics is None else physics
        self.changes = tuple(changes)
        self.faults = Faults() if faults is None else faults
        self.keys = None if keys is None else frozenset(keys)
        self.models = None if models is None else tuple(models)
        self.say = say
        self.tally = Tally()
        self._seen: dict[bytes, int] = {}
        self._place: Place | None = None

    def stats(self) -> JSON:
        """Give the provider's own counts since it was made; see `llmlab.sim.tally.Tally`."""
        return self.tally.table(self._place.engine.queued if self._place else 0)

    async def handle(self, method: str, path: str, headers: Headers, body: bytes) -> Response:
        """Answer one request.

        Raises:
            Broken: the connection ends before the response.
        """
        dialect = _ANTHROPIC if path.endswith(_ANTHROPIC.path) else _OPENAI
        if method != "POST" or not path.endswith(dialect.path):
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
            self._place = Place(self.physics, self.changes)
        return self._place

    def _enter(self, dialect: _Dialect, body: bytes) -> _Visit:
        here = self._here()
        digest = blake2b(body, digest_size=16).digest()
        nth = self._seen[digest] = self._seen.get(digest, 0) + 1
        drawn = blake2b(digest + b"%d %d" % (self.seed, nth), digest_size=20).digest()
        rng = random.Random(int.from_bytes(drawn[:8]))
        now = here.loop.time()
        kind = self.faults.pick(rng, now - here.began, self.seed) or NONE
        self.tally.enter(kind.name)
        self.tally.in_outage += self.faults.down(now - here.began)
        return _Visit(dialect, here, Stamp(drawn[8:].hex(), int(now + here.offset)), rng, kind, now)

    def _leave(self, visit: _Visit) -> None:
        if not visit.left:
            visit.left = True
            self.tally.in_flight -= 1
            if visit.seat is not None:
                visit.seat.leave()
            if not visit.whole:
                self.tally.wasted_input += visit.read
                self.tally.wasted_output += 0 if visit.pace is None else visit.pace.written

    async def _serve(self, visit: _Visit, headers: Headers, body: bytes) -> Response:
        await asyncio.sleep(visit.here.physics.rtt)
        await self._misfortune(visit)
        self._authorize(headers)
        ask = visit.dialect.parse(body, headers)
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
        if ask.stream:
            return self._stream(visit, seat, ask, answer)
        if visit.kind.name == "error_in_stream":  # there is no stream to have it in
            return await self._no_answer(visit, seat, tokens)
        return await self._plain(visit, seat, ask, answer)

    async def _misfortune(self, visit: _Visit) -> None:
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

    def _authorize(self, headers: Headers) -> None:
        if self.keys is None:
            return
        bearer = (headers.get("authorization") or "").removeprefix("Bearer ")
        key = bearer or headers.get("x-api-key") or headers.get("api-key") or ""
        if key not in self.keys:
            masked = f"{key[:3]}***{key[-4:]}" if len(key) > 12 else "***"  # noqa: PLR2004  as OpenAI masks it
            raise Refusal("auth", facts={"key": masked})

    def _admit(self, visit: _Visit, ask: Ask, tokens: int) -> None:
        """Check model, context and rate limits, and charge the latter."""
        if self.models is not None and ask.model not in self.models:
            raise Refusal("not_found", facts={"model": ask.model})
        used = tokens + (ask.max_tokens or 0)
        physics = visit.here.physics
        if used > physics.context:
            facts = {"limit": physics.context, "used": used}
            raise Refusal("context_too_long", param="messages", facts=facts)
        allowance = self._allowance(visit)
        costs = visit.wire.costs(ask, tokens)
        if name := allowance.beyond(costs):
            raise Refusal("too_large_429", facts=_facts(allowance, name, visit, ask, costs))
        name, wait = allowance.tightest(costs, visit.now)
        if name:
            raise Refusal(
                "rate_limited", wait=wait, hint=physics.hint, facts=_facts(allowance, name, visit, ask, costs)
            )
        allowance.take(costs, visit.now)

    def _allowance(self, visit: _Visit) -> Allowance:
        return visit.here.allowance(visit.wire.BUCKETS)

    def _answer(self, visit: _Visit, ask: Ask) -> Answer:
        text = self.say(ask) if self.say is not None else None
        median, sigma = visit.here.physics.reply_tokens, visit.here.physics.reply_sigma
        answer = replies.answer(ask, seed=self.seed, median=median, sigma=sigma, text=text)
        if visit.kind.family != "answer":
            return answer
        nothing = Choice((), "content_filter" if visit.kind.name == "refused" else "stop")
        return replace(answer, choices=(nothing,) * ask.n, reasoning=())

    async def _no_answer(self, visit: _Visit, seat: Seat, tokens: int) -> Response:
        """Answer 200 with something that is no answer, as late as an answer would come."""
        await seat.reach(visit.here.physics.first(tokens, visit.rng))
        if visit.kind.name == "html_200":
            return whole(200, self._headers(visit), _HTML, "text/html")
        error = visit.wire.error(Refusal("server_error"), f"req_{visit.stamp.id}")[1]
        return whole(200, self._headers(visit), orjson.dumps(error), _JSON)

    async def _plain(self, visit: _Visit, seat: Seat, ask: Ask, answer: Answer) -> Response:
        fault = visit.kind.name
        body = orjson.dumps(visit.wire.plain(ask, answer, visit.stamp, fault))
        reach = self._pace(visit, seat, answer)
        await reach(max(1, answer.steps))
        if not fault:
            visit.whole = True
            return whole(200, self._headers(visit), body, _JSON)
        return self._respond(visit, of_body(body, fault, visit.rng), _JSON, reach)

    def _stream(self, visit: _Visit, seat: Seat, ask: Ask, answer: Answer) -> Response:
        wire, fault = visit.wire, visit.kind.name
        error = wire.error_event(Refusal("overloaded"), f"req_{visit.stamp.id}")
        script = of_events(wire.stream(ask, answer, visit.stamp, fault), fault, visit.rng, error=error)
        return self._respond(visit, script, _SSE, self._pace(visit, seat, answer))

    def _pace(self, visit: _Visit, seat: Seat, answer: Answer) -> Reach:
        """Give the wait for a decoding step, from 1; its tokens count as written when it is over."""
        physics = visit.here.physics
        step = physics.itl
        if visit.kind.name == "slow_drip":
            step = step * 10 or _DRIP
        first = physics.first(answer.input_tokens, visit.rng)
        limited = self._allowance(visit).buckets.get("output-tokens")
        visit.pace = Pace(seat, answer, first=first, step=step, tally=self.tally, limited=limited)
        return visit.pace.reach

    def _respond(self, visit: _Visit, script: Script, kind: str, reach: Reach) -> Response:
        headers = self._headers(visit) | {"content-type": kind}
        if script.framing == "length":
            headers["content-length"] = str(script.length)
        if kind == _SSE:
            headers["cache-control"] = "no-cache"
        body = Body(self._play(visit, script, reach), lambda: self._leave(visit))
        return Response(200, headers, body, script.framing)

    async def _play(self, visit: _Visit, script: Script, reach: Reach) -> AsyncGenerator[bytes, None]:
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

    def _refuse(self, visit: _Visit, refusal: Refusal) -> Response:
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

    def _headers(self, visit: _Visit, *, levels: bool = True) -> dict[str, str]:
        headers = {"date": http_date(int(visit.unix))} | visit.wire.ids(visit.stamp, visit.now - visit.came)
        if levels and visit.here.physics.hint != "none" and (allowance := self._allowance(visit)).buckets:
            headers |= visit.wire.levels(allowance.levels(visit.now), visit.unix)
        return headers

    async def _aside(self, method: str, path: str, headers: Headers, body: bytes) -> Response:
        """Answer what is no completion: models, token counts, statistics, wrong paths. No faults here."""
        await asyncio.sleep(self.physics.rtt if self._place is None else self._place.physics.rtt)
        anthropic = path.endswith("/count_tokens") or headers.get("anthropic-version") is not None
        wire = (_ANTHROPIC if anthropic else _OPENAI).wire
        try:
            if path != aside.STATS:
                self._authorize(headers)
            count = partial(_count, body, headers)
            status, value = aside.look_up(wire, method, path, models=self.models, stats=self.stats, count=count)
        except Refusal as refusal:
            status, value = wire.error(refusal, "req_aside")
        if value is None:
            return whole(status, {}, b"404 page not found\n", "text/plain")
        return whole(status, {}, orjson.dumps(value), _JSON)


def _count(body: bytes, headers: Headers) -> int:
    return replies.input_tokens(anthropic_ask.parse_count(body, headers))


def _facts(allowance: Allowance, name: str, visit: _Visit, ask: Ask, costs: dict[str, int]) -> JSON:
    level = allowance.levels(visit.now)[name]
    used = level.limit - level.remaining
    return {"model": ask.model, "bucket": name, "limit": level.limit, "used": used, "asked": costs[name]}
