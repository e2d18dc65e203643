"""Who may ask, how much, and what stands in the log."""

import asyncio
import json
import logging
from typing import Any

import httpx
import pytest

import llmlab
from llmlab.service.logs import JSONLines
from tests.service.conftest import Serve

KEYS = {"team": "key-of-the-team", "other": "key-of-another"}
ASK = {"prompt": "a secret thought"}


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_without_a_valid_key_nothing_is_answered_but_the_health(serve: Serve) -> None:
    async def main() -> None:
        async with serve(keys=KEYS) as served:
            for headers in ({}, bearer("wrong-key-altogether"), {"Authorization": "Basic a2V5"}, bearer("")):
                answer = await served.client.post("/v1/completions", json=ASK, headers=headers)
                assert answer.status_code == 401
                assert answer.headers["www-authenticate"] == "Bearer"
                assert (await served.client.get("/v1/metrics", headers=headers)).status_code == 401
            assert served.simulator.requests == 0
            assert (await served.client.get("/v1/health")).status_code == 200
            right = await served.client.post("/v1/completions", json=ASK, headers=bearer(KEYS["team"]))
            assert right.status_code == 200

    asyncio.run(main())


@pytest.mark.parametrize("keys", [["short"], {"a": ""}])
def test_a_key_that_is_hardly_one_is_refused(serve: Serve, keys: Any) -> None:
    async def main() -> None:
        with pytest.raises(ValueError, match="at least 8 characters"):
            async with serve(keys=keys):
                pass

    asyncio.run(main())


@pytest.mark.parametrize(
    ("host", "client", "status"),
    [
        ("127.0.0.1:80", "127.0.0.1", 200),
        ("localhost", "127.0.0.1", 200),
        ("evil.example", "127.0.0.1", 403),
        ("10.0.0.5", "10.0.0.9", 403),
        ("127.0.0.1", "10.0.0.9", 403),
        ("[::1]:8000", "127.0.0.1", 200),
        ("127.0.0.1", "unknown", 403),
    ],
)
def test_without_keys_only_this_machine_is_answered(serve: Serve, host: str, client: str, status: int) -> None:
    async def main() -> None:
        async with serve() as served:
            address = host.partition(":")[0] if host[0].isdigit() else "127.0.0.1"
            transport = httpx.ASGITransport(served.app, client=(client, 1234))
            async with httpx.AsyncClient(transport=transport, base_url=f"http://{address}") as asking:
                answer = await asking.post("/v1/completions", json=ASK, headers={"Host": host})
            assert answer.status_code == status

    asyncio.run(main())


def test_each_key_has_a_rate_of_its_own(serve: Serve) -> None:
    async def main() -> None:
        async with serve(keys=KEYS, rpm=20) as served:
            seen = [
                (await served.client.post("/v1/completions", json=ASK, headers=bearer(KEYS["team"]))) for _ in range(4)
            ]
            assert [answer.status_code for answer in seen] == [200, 200, 429, 429]
            assert 1 <= int(seen[-1].headers["retry-after"]) <= 60
            other = await served.client.post("/v1/completions", json=ASK, headers=bearer(KEYS["other"]))
            assert other.status_code == 200

    asyncio.run(main())


def test_a_body_is_bounded_whatever_its_header_says(serve: Serve) -> None:
    async def chunks() -> Any:
        for _ in range(100):
            yield b"x" * 1000

    async def main() -> None:
        async with serve(max_body=5_000) as served:
            said = await served.client.post("/v1/completions", json={"prompt": "x" * 6_000})
            hidden = await served.client.post("/v1/completions", content=chunks())
            assert (said.status_code, hidden.status_code) == (413, 413)

    asyncio.run(main())


def test_the_log_has_neither_prompts_nor_keys(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with serve(keys=KEYS) as served:
            headers = bearer(KEYS["team"]) | {"X-Request-Id": "mine-1"}
            await served.client.post("/v1/completions", json=ASK, headers=headers)

    with caplog.at_level(logging.INFO, logger="llmlab.service"):
        asyncio.run(main())
    (line,) = [json.loads(record.message) for record in caplog.records if record.name == "llmlab.service"]
    assert line["request_id"] == "mine-1"
    assert line["client"] == "team"
    assert (line["status"], line["prompts"]) == (200, 1)
    assert not [secret for secret in (*KEYS.values(), ASK["prompt"], "sk-upstream") if secret in caplog.text]


def test_a_request_id_that_could_forge_a_log_line_is_replaced(serve: Serve) -> None:
    async def main() -> None:
        async with serve() as served:
            answer = await served.client.get("/v1/health", headers={"X-Request-Id": "a b\tc"})
            assert answer.headers["x-request-id"].startswith("req_")

    asyncio.run(main())


def test_web_pages_of_others_may_not_ask_unless_named(serve: Serve) -> None:
    async def main(cors: list[str], expected: str | None) -> None:
        async with serve(cors=cors) as served:
            headers = {"Origin": "http://app.example", "Access-Control-Request-Method": "POST"}
            answer = await served.client.options("/v1/completions", headers=headers)
            assert answer.headers.get("access-control-allow-origin") == expected

    asyncio.run(main([], None))
    asyncio.run(main(["http://app.example"], "http://app.example"))


@pytest.mark.parametrize("name", ["X-Forwarded-For", "Forwarded", "Via", "X-Real-IP"])
def test_without_keys_what_a_proxy_passes_on_is_from_who_knows_where(serve: Serve, name: str) -> None:
    async def main() -> None:
        async with serve() as served:
            answer = await served.client.post("/v1/completions", json=ASK, headers={name: "127.0.0.1"})
            assert answer.status_code == 403
        async with serve(keys=KEYS) as served:
            headers = bearer(KEYS["team"]) | {name: "10.0.0.1"}
            assert (await served.client.post("/v1/completions", json=ASK, headers=headers)).status_code == 200

    asyncio.run(main())


@pytest.mark.parametrize(
    ("origin", "status"),
    [("http://evil.example", 403), ("null", 403), ("http://test", 200), ("http://app.example", 200)],
)
def test_without_keys_no_web_page_of_others_can_spend_anything(serve: Serve, origin: str, status: int) -> None:
    async def main() -> None:
        async with serve(cors=["http://app.example"]) as served:
            answer = await served.client.post("/v1/completions", json=ASK, headers={"Origin": origin})
            assert answer.status_code == status
            assert served.simulator.requests == (status == 200)

    asyncio.run(main())


def test_a_page_that_may_ask_is_let_in_with_its_key_and_reads_its_refusals(serve: Serve) -> None:
    async def main() -> None:
        async with serve(keys=KEYS, cors=["http://app.example"]) as served:
            wants = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
            before = await served.client.options("/v1/completions", headers={"Origin": "http://app.example", **wants})
            assert before.status_code == 200, "browsers ask first, without the key"
            refused = await served.client.post("/v1/completions", json=ASK, headers={"Origin": "http://app.example"})
            assert refused.status_code == 401
            assert refused.headers["access-control-allow-origin"] == "http://app.example"

    asyncio.run(main())


def test_who_has_no_key_learns_the_health_and_nothing_of_the_upstream(serve: Serve) -> None:
    async def main() -> None:
        async with serve(keys=KEYS) as served:
            assert "openai" not in (await served.client.get("/v1/health")).text
            known = await served.client.get("/v1/health", headers=bearer(KEYS["team"]))
            assert isinstance(known.json()["targets"], dict)
            assert (await served.client.head("/v1/health")).status_code == 200
            assert (await served.client.head("/v1/metrics")).status_code == 401

    asyncio.run(main())


def test_a_failure_of_our_own_is_a_500_that_tells_nothing(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("a secret thought")

    monkeypatch.setattr("llmlab.service.completions.asked", broken)

    async def main() -> None:
        async with serve() as served:
            answer = await served.client.post("/v1/completions", json=ASK)
            assert answer.status_code == 500
            assert answer.json()["error"]["request_id"] == answer.headers["x-request-id"]
            assert "secret thought" not in answer.text
            assert (
                'llmlab_http_requests_total{route="/v1/completions",status="500"} 1.0'
                in (await served.client.get("/metrics")).text.splitlines()
            )

    asyncio.run(main())
    line = [JSONLines().format(record) for record in caplog.records if record.levelname == "ERROR"]
    told = json.loads(line[0])
    assert told["error"] == "RuntimeError"
    assert any("broken" in step for step in told["where"])
    assert "secret thought" not in line[0], "an exception's words may be a prompt's"


@pytest.mark.parametrize("faults", ["bad_request:1", "auth:1", "server_error:1"])
def test_figures_tell_no_more_of_the_upstream_than_answers_do(serve: Serve, faults: str) -> None:
    async def main() -> None:
        bare = {"strategy": llmlab.Strategy.bare()}
        async with serve(faults=faults, lab=bare) as served:
            answer = await served.client.post("/v1/completions", json=ASK)
            (last,) = (await served.client.get("/v1/metrics")).json()["last_errors"]
            assert last["message"] == answer.json()["error"]["message"]

    asyncio.run(main())
