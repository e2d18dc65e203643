"""Who may ask, how much, and what stands in the log."""

import asyncio
import json
import logging
from typing import Any

import httpx
import pytest

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
