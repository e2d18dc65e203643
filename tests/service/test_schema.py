"""The app against its own OpenAPI description, by schemathesis: nothing breaks, nothing is undocumented or leaks."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx
import hypothesis
import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, settings
from starlette.testclient import TestClient

import llmlab
from llmlab.service import create_app
from llmlab.sim import Physics, Simulator
from tests.service.conftest import Serve, echo

KEY = "key-of-the-team"
UPSTREAM = "sk-upstream-secret"
ENDLESS = {"/v1/metrics/stream"}
DOCUMENTED_5XX = {502, 503, 504}


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    simulator = Simulator(physics=Physics.instant(), say=echo)
    lab = llmlab.Lab("openai:m", api_key=UPSTREAM, transport=simulator, progress=False)
    app = create_app(lab, keys={"team": KEY}, max_prompts=50, deadline=5.0)
    with TestClient(app, raise_server_exceptions=True) as client:
        yield client


def cases(client: TestClient) -> dict[str, Any]:
    assert isinstance(client.app, FastAPI)
    schema = schemathesis.openapi.from_dict(client.app.openapi())
    return {operation.label: operation for operation in (each.ok() for each in schema.get_all_operations())}  # type: ignore[union-attr]


def labels() -> list[str]:
    lab = llmlab.Lab("openai:m", api_key=UPSTREAM, transport=Simulator())
    paths = create_app(lab).openapi()["paths"]
    found = [f"{method.upper()} {path}" for path, item in paths.items() for method in item]
    return [label for label in found if label.partition(" ")[2] not in ENDLESS]


@pytest.mark.parametrize("label", labels())
@pytest.mark.filterwarnings("ignore")
def test_whatever_is_asked_is_answered_as_described(client: TestClient, label: str) -> None:
    operation = cases(client)[label]
    modes = [schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE]
    for mode in modes:

        @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
        @settings(
            max_examples=8, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
        )
        def try_out(case: Any) -> None:
            case.headers = {**(case.headers or {}), "Authorization": f"Bearer {KEY}"}
            answer = client.request(**{k: v for k, v in case.as_transport_kwargs().items() if k != "cookies"})
            described = operation.definition.raw["responses"]
            assert str(answer.status_code) in described or answer.status_code == 405, (case, answer.text)
            assert answer.status_code < 500 or answer.status_code in DOCUMENTED_5XX, answer.text
            assert KEY not in answer.text
            assert UPSTREAM not in answer.text
            if answer.status_code >= 400 and label != "GET /v1/health":
                assert answer.json()["error"]["code"] == answer.status_code

        try:
            try_out()
        except hypothesis.errors.Unsatisfiable:
            assert mode is schemathesis.GenerationMode.NEGATIVE


def test_every_operation_is_described_with_examples_and_its_failures(serve: Serve) -> None:
    async def main() -> None:
        async with serve(keys={"team": KEY}) as served:
            described = (await served.client.get("/openapi.json")).json()
            check(described)
            stream = httpx.Request("GET", "http://test/v1/metrics/stream", headers={"Authorization": f"Bearer {KEY}"})
            assert stream.url.path in described["paths"]

    asyncio.run(main())


def check(described: dict[str, Any]) -> None:
    shapes = described["components"]["schemas"]
    for path, item in described["paths"].items():
        for method, operation in item.items():
            where = f"{method} {path}"
            assert operation["description"], where
            assert path == "/v1/health" or operation["security"] == [{"key": []}], where
            body = operation.get("requestBody")
            if body is not None:
                name = body["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
                assert shapes[name]["examples"], where
                assert {"400", "401", "413", "422", "429", "502", "503", "504"} <= set(operation["responses"]), where
            for kind, content in operation["responses"].get("200", {}).get("content", {}).items():
                assert shown(content, shapes), f"{where}: {kind} has no example"
    assert json.dumps(described)


def shown(content: dict[str, Any], shapes: dict[str, Any]) -> bool:
    if "example" in content or "examples" in content:
        return True
    schema = content["schema"]
    schema = schema.get("items", schema)
    return bool(shapes[schema["$ref"].rpartition("/")[2]].get("examples")) if "$ref" in schema else False
