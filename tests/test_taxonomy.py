import inspect
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmlab import errors
from llmlab.errors import (
    AuthFailed,
    BadPayload,
    BadRequest,
    Conflict,
    ContentBlocked,
    ContextTooLong,
    LLMError,
    NotFound,
    Overloaded,
    PermissionDenied,
    QuotaExhausted,
    RateLimited,
    RequestTooLarge,
    ServerError,
    TimedOut,
    UnsupportedParam,
)
from llmlab.providers.taxonomy import CODES, STATUSES, TYPES, classify

TPM = "Rate limit reached for m in o on tokens per min (TPM): Limit 30000, Used 18928, Requested 11159. "
LARGE = "Request too large for m in o on tokens per min (TPM): Limit 30000, Requested 31538. "
HTML = b"<!DOCTYPE html><html><head><title>502 Bad Gateway</title><style>p{}</style></head><p>x</p></html>"


def openai(message: str = "m", kind: str | None = None, code: str | int | None = None, **more: object) -> bytes:
    return orjson.dumps({"error": {"message": message, "type": kind, "param": None, "code": code, **more}})


def anthropic(kind: str, message: str = "m", error_code: str | None = None) -> bytes:
    details = {"error_code": error_code} if error_code else None
    error = {"type": kind, "message": message, "details": details}
    return orjson.dumps({"type": "error", "error": error, "request_id": "req_1"})


def google(code: int, status: str, *details: object) -> dict[str, Any]:
    return {"error": {"code": code, "message": "m", "status": status, "details": list(details)}}


def judged(status: int, body: bytes = b"", **headers: str) -> LLMError:
    return classify(status, {name.replace("_", "-"): value for name, value in headers.items()}, body)


OPENAI_ROWS = [
    (
        400,
        openai(
            "This model's maximum context length is 8192 tokens.",
            "invalid_request_error",
            "context_length_exceeded",
        ),
        ContextTooLong,
    ),
    (
        400,
        openai(
            "Unsupported parameter: 'max_tokens' is not supported with this model.",
            "invalid_request_error",
            "unsupported_parameter",
        ),
        UnsupportedParam,
    ),
    (
        400,
        openai("Only the default (1) value is supported.", "invalid_request_error", "unsupported_value"),
        UnsupportedParam,
    ),
    (
        400,
        openai(
            "'temperature' does not support 0. Only the default (1) value is supported.",
            "invalid_request_error",
        ),
        UnsupportedParam,
    ),
    (400, openai("bad", "invalid_request_error"), BadRequest),
    (400, openai("bad", "invalid_request_error", "invalid_prompt"), BadRequest),
    (400, openai("bad", "invalid_request_error", "invalid_image_url"), BadRequest),
    (401, openai("wrong key", "invalid_request_error", "invalid_api_key"), AuthFailed),
    (401, openai("You didn't provide an API key.", "invalid_request_error"), AuthFailed),
    (403, openai("no", "request_forbidden", "unsupported_country_region_territory"), PermissionDenied),
    (403, openai("no access to the project"), PermissionDenied),
    (404, openai("no such model", "invalid_request_error", "model_not_found"), NotFound),
    (408, b"", TimedOut),
    (409, b"", Conflict),
    (413, b"<html>413</html>", RequestTooLarge),
    (422, openai("unprocessable"), BadRequest),
    (429, openai(TPM, "tokens", "rate_limit_exceeded"), RateLimited),
    (429, openai("Rate limit reached", "requests", "rate_limit_exceeded"), RateLimited),
    (
        429,
        openai(LARGE + "The input or output tokens must be reduced.", "tokens", "rate_limit_exceeded"),
        RequestTooLarge,
    ),
    (
        429,
        openai("on tokens per min (TPM): Limit 30,000, Requested 31,538.", "tokens", "rate_limit_exceeded"),
        RequestTooLarge,
    ),
    (429, openai("too fast", "rate_limit_error", "slow_down"), RateLimited),
    *(
        (429, openai("money", "insufficient_quota", code), QuotaExhausted)
        for code in (
            "insufficient_quota",
            "credit_balance_exhausted",
            "organization_spend_limit_exceeded",
            "project_spend_limit_exceeded",
            "organization_usage_limit_exceeded",
            "billing_hard_limit_reached",
        )
    ),
    (429, openai("money", "insufficient_quota"), QuotaExhausted),
    (429, openai("money", "requests", "credit_balance_exhausted"), QuotaExhausted),
    (429, openai("Resource Unavailable"), RateLimited),
    (500, openai("oops", "server_error"), ServerError),
    (502, HTML, ServerError),
    (504, HTML, TimedOut),
    (503, openai("busy", "service_unavailable_error", "server_is_overloaded"), Overloaded),
    (503, openai("busy", "server_error"), Overloaded),
]

ANTHROPIC_ROWS = [
    (400, anthropic("invalid_request_error"), BadRequest),
    (
        400,
        anthropic("invalid_request_error", "prompt is too long: 210000 tokens > 200000 maximum"),
        ContextTooLong,
    ),
    (
        400,
        anthropic("invalid_request_error", "Your credit balance is too low to access the Anthropic API."),
        QuotaExhausted,
    ),
    (
        400,
        anthropic("invalid_request_error", "You have reached your specified API usage limits."),
        QuotaExhausted,
    ),
    (400, anthropic("invalid_request_error", "on hold", "organization_on_hold"), PermissionDenied),
    (
        400,
        anthropic("invalid_request_error", "temperature: Extra inputs are not permitted"),
        UnsupportedParam,
    ),
    (401, anthropic("authentication_error"), AuthFailed),
    (402, anthropic("billing_error"), QuotaExhausted),
    (402, anthropic("billing_error", "m", "linked_organization_x"), QuotaExhausted),
    (403, anthropic("permission_error"), PermissionDenied),
    (404, anthropic("not_found_error", "model: x"), NotFound),
    (408, b"", TimedOut),
    (409, anthropic("conflict_error"), Conflict),
    (413, anthropic("request_too_large"), RequestTooLarge),
    (413, b"<html>Request Entity Too Large</html>", RequestTooLarge),
    (429, anthropic("rate_limit_error"), RateLimited),
    (429, anthropic("rate_limit_error", "m", "ramp_limit_exceeded"), RateLimited),
    (429, anthropic("rate_limit_error", "m", "enforced_spend_limit_reached"), QuotaExhausted),
    (429, anthropic("rate_limit_error", "m", "contract_spend_limit_reached"), QuotaExhausted),
    (500, anthropic("api_error"), ServerError),
    (503, anthropic("api_error", "m", "cmek_key_disabled"), PermissionDenied),
    (503, anthropic("overloaded_error", "m", "cmek_unreachable"), PermissionDenied),
    (504, anthropic("timeout_error"), TimedOut),
    (529, anthropic("overloaded_error"), Overloaded),
]

DIALECT_ROWS = [
    # vLLM
    (400, openai("bad", "BadRequestError", 400), BadRequest),
    (404, openai("The model `x` does not exist.", "NotFoundError", 404), NotFound),
    (401, b'{"error":"Unauthorized"}', AuthFailed),
    (
        400,
        b'{"object":"error","message":"This model\'s maximum context length is 4096 tokens.","code":400}',
        ContextTooLong,
    ),
    # SGLang
    (400, b'{"object":"error","message":"bad","type":"400","code":400}', BadRequest),
    # llama.cpp
    (
        400,
        openai("the request exceeds the available context size", "exceed_context_size_error", 400, n_ctx=4096),
        ContextTooLong,
    ),
    (503, openai("Loading model", "unavailable_error", 503), Overloaded),
    (501, openai("no embeddings", "not_supported_error", 501), BadRequest),
    (500, b"terminate called", ServerError),
    # Ollama
    (404, openai('model "x" not found, try pulling it first', "api_error"), NotFound),
    # Groq
    (498, openai("capacity exceeded"), RateLimited),
    (
        413,
        openai(
            "Request too large for model `m`: Limit 6000, Requested 12328, please reduce your message size",
            "tokens",
            "rate_limit_exceeded",
        ),
        RequestTooLarge,
    ),
    (413, openai("no figures", "tokens", "rate_limit_exceeded"), RequestTooLarge),
    (400, openai("property 'foo' is unsupported", "invalid_request_error"), UnsupportedParam),
    # Together
    (503, openai("overloaded"), Overloaded),
    (504, b"", TimedOut),
    (520, b"", ServerError),
    (524, HTML, ServerError),
    (529, b"", Overloaded),
    # OpenRouter
    (402, openai("Insufficient credits", code=402), QuotaExhausted),
    (403, openai("flagged", code=403, metadata={"reasons": ["x"], "flagged_input": "…"}), ContentBlocked),
    (403, openai("no", code=403, metadata={"provider_name": "p"}), PermissionDenied),
    (502, openai("Provider returned error", code=502), ServerError),
    (503, openai("No instances available", code=503), Overloaded),
    (
        400,
        openai("Provider returned error", code=400, metadata={"raw": "prompt is too long: 9 tokens"}),
        ContextTooLong,
    ),
    # Azure
    (
        400,
        openai("filtered", None, "content_filter", innererror={"code": "ResponsibleAIPolicyViolation"}),
        ContentBlocked,
    ),
    (400, openai("filtered", innererror={"code": "ResponsibleAIPolicyViolation"}), ContentBlocked),
    (404, openai("gone", None, "DeploymentNotFound"), NotFound),
    (429, openai("Too many. Please retry after 2 seconds.", None, "429"), RateLimited),
    (429, openai("Please retry after 86400 seconds.", None, "429"), QuotaExhausted),
    # Gemini
    (429, orjson.dumps([google(429, "RESOURCE_EXHAUSTED", {"retryDelay": "32s"})]), RateLimited),
    (
        429,
        orjson.dumps([google(429, "RESOURCE_EXHAUSTED", {"violations": [{"quotaId": "RequestsPerDayPerModel"}]})]),
        QuotaExhausted,
    ),
    (400, orjson.dumps([google(400, "INVALID_ARGUMENT", {"reason": "API_KEY_INVALID"})]), AuthFailed),
    (400, openai('Unknown name "foo": Cannot find field.', status="INVALID_ARGUMENT"), UnsupportedParam),
    (503, orjson.dumps(google(503, "UNAVAILABLE")), Overloaded),
    # DeepSeek
    (402, openai("Insufficient Balance", "unknown_error"), QuotaExhausted),
    (422, openai("bad"), BadRequest),
    # FastAPI, and nobody in particular
    (
        422,
        b'{"detail":[{"loc":["body","messages"],"msg":"Field required","input":"the prompt"}]}',
        BadRequest,
    ),
    (422, b'{"detail":[{"loc":["body","foo"],"msg":"Extra inputs are not permitted"}]}', UnsupportedParam),
    (400, b'{"message":"bad"}', BadRequest),
    (405, b"", BadRequest),
    (415, b"", BadRequest),
    (418, b"", BadRequest),
    (599, b"", ServerError),
    (526, b"", ServerError),
    (530, b"", ServerError),
    (307, b"", NotFound),
]


@pytest.mark.parametrize(("status", "body", "kind"), OPENAI_ROWS + ANTHROPIC_ROWS + DIALECT_ROWS)
def test_each_row_of_the_fact_sheet_has_its_class(status: int, body: bytes, kind: type[LLMError]) -> None:
    error = judged(status, body)
    assert type(error) is kind
    assert error.status == status


@pytest.mark.parametrize(
    "fragment",
    [
        "This model's maximum context length is",
        "maximum context limit",
        "is longer than the model's context length",
        "exceeds the available context size",
        "input tokens exceed the configured limit",
        "exceeds the maximum number of tokens allowed",
        "exceed context limit",
        "prompt is too long",
        "string too long. Expected a string with maximum length",
    ],
)
@pytest.mark.parametrize("status", [400, 413, 500])
def test_each_sentence_about_the_context_is_known_at_any_status(fragment: str, status: int) -> None:
    assert type(judged(status, openai(f"Sorry: {fragment} 4096."))) is ContextTooLong


@pytest.mark.parametrize(
    ("kind", "status", "expected"),
    [
        ("overloaded_error", 529, Overloaded),
        ("rate_limit_error", 429, RateLimited),
        ("api_error", 500, ServerError),
        ("server_error", 500, ServerError),
        ("timeout_error", 504, TimedOut),
        ("authentication_error", 401, AuthFailed),
        ("permission_error", 403, PermissionDenied),
        ("not_found_error", 404, NotFound),
        ("invalid_request_error", 400, BadRequest),
        ("billing_error", 402, QuotaExhausted),
        ("new_error", 500, ServerError),
    ],
)
def test_an_error_inside_a_200_gets_the_status_of_its_type(kind: str, status: int, expected: type[LLMError]) -> None:
    error = judged(200, anthropic(kind))
    assert (type(error), error.status) == (expected, status)


@pytest.mark.parametrize("code", [502, "502"])
def test_an_error_inside_a_200_gets_the_status_of_its_number(code: int | str) -> None:
    error = judged(200, openai("bad gateway", code=code))
    assert (type(error), error.status) == (ServerError, 502)


@pytest.mark.parametrize("code", [1302, 200, 0, -1, "1302", True, 1e3])
def test_a_number_that_is_no_status_is_none(code: object) -> None:
    assert type(judged(429, orjson.dumps({"error": {"message": "m", "code": code}}))) is RateLimited


def test_the_body_speaks_before_the_status() -> None:
    assert type(judged(500, anthropic("overloaded_error"))) is Overloaded
    assert type(judged(400, openai("m", "tokens", "rate_limit_exceeded"))) is RateLimited
    assert type(judged(500, openai("m", code=429))) is RateLimited


def test_money_speaks_before_size_and_size_before_rate() -> None:
    assert type(judged(429, openai(LARGE, "insufficient_quota"))) is QuotaExhausted
    assert type(judged(429, openai(LARGE, "tokens", "rate_limit_exceeded"))) is RequestTooLarge


@pytest.mark.parametrize("body", [b"", b"<html>ok</html>", b"hello", b"[]", b"{}", b"null", b"5"])
def test_a_200_that_says_nothing_is_a_bad_payload(body: bytes) -> None:
    assert type(judged(200, body)) is BadPayload


def test_x_should_retry_false_forbids_a_retry() -> None:
    assert not judged(503, b"", x_should_retry="false").verdict.retry
    assert not judged(429, anthropic("rate_limit_error"), x_should_retry="false").verdict.retry
    assert judged(503).verdict.retry


def test_x_should_retry_true_allows_a_retry_where_only_the_status_spoke() -> None:
    assert judged(400, openai("m"), x_should_retry="true").verdict.retry
    assert judged(403, b"", x_should_retry=" TRUE ").verdict.retry
    assert not judged(400, openai("m", None, "context_length_exceeded"), x_should_retry="true").verdict.retry
    assert not judged(429, openai(LARGE), x_should_retry="true").verdict.retry


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (401, b""),
        (402, b""),
        (429, openai("m", "insufficient_quota")),
        (401, anthropic("authentication_error")),
    ],
)
def test_x_should_retry_revives_neither_a_spent_quota_nor_a_wrong_key(status: int, body: bytes) -> None:
    error = judged(status, body, x_should_retry="true")
    assert not error.verdict.retry
    assert error.verdict.fatal


def test_a_veto_changes_this_error_only() -> None:
    judged(503, b"", x_should_retry="false")
    assert Overloaded.verdict.retry


@pytest.mark.parametrize(
    ("body", "headers", "seconds"),
    [
        (openai(TPM + "Please try again in 174ms."), {}, 0.174),
        (openai(TPM), {"retry_after": "16"}, 16),
        (openai("try again in 9s"), {"retry_after_ms": "500", "retry_after": "2"}, 0.5),
        (orjson.dumps([google(429, "RESOURCE_EXHAUSTED", {"x": 1}, {"retryDelay": "32s"})]), {}, 32),
        (orjson.dumps(google(429, "RESOURCE_EXHAUSTED", {"retryDelay": "soon"})), {}, None),
        (openai("m"), {}, None),
    ],
)
def test_the_wait_is_read_from_headers_then_body_then_words(
    body: bytes, headers: dict[str, str], seconds: float | None
) -> None:
    assert judged(429, body, **headers).retry_after == (None if seconds is None else pytest.approx(seconds))


def test_a_wait_beyond_an_hour_is_a_spent_quota_and_keeps_its_time() -> None:
    error = judged(429, openai("m", "requests", "rate_limit_exceeded"), retry_after="86400")
    assert (type(error), error.retry_after) == (QuotaExhausted, 86_400)
    assert type(judged(429, b"", retry_after="200")) is RateLimited
    assert type(judged(503, b"", retry_after="86400")) is Overloaded


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'[{"error":{"message":"in a list"}}]', "in a list"),
        (b'{"error":{"message":"plain"}}', "plain"),
        (b'{"error":"a string"}', "a string"),
        (b'{"message":"flat"}', "flat"),
        (b'{"detail":"detail"}', "detail"),
        (
            b'{"detail":[{"loc":["body",0,"x"],"msg":"required","input":"SECRET"},"and more"]}',
            "body.0.x: required; and more",
        ),
        (b'{"detail":{"message":"deeper"}}', "deeper"),
        (b'{"error":[{"message":"inner list"}]}', "inner list"),
        (b"upstream  connect\n error", "upstream connect error"),
        (b'"just a string"', "just a string"),
        (HTML, "502 Bad Gateway"),
        (b"<p>no &amp; title</p><script>alert(1)</script>", "no & title"),
        (b"", ""),
        (b"[]", ""),
        (b"\xff", "\ufffd"),
        (b'{"error":{"message":"up","metadata":{"raw":"down"}}}', "up: down"),
        (b'{"error":{"message":"a\\u001b[31mb"}}', "a [31mb"),
    ],
)
def test_every_shape_of_body_gives_its_message(body: bytes, message: str) -> None:
    assert judged(500, body).message == message


def test_a_long_message_is_cut_at_500_characters() -> None:
    assert judged(400, openai("x" * 501)).message == "x" * 499 + "…"
    assert judged(400, b"y" * 10**6).message == "y" * 499 + "…"


@pytest.mark.parametrize("key", ["sk-abcdefgh12345678", "gsk_abcdefgh1234", "xai-abcdefgh1234", "AIza" + "x" * 35])
def test_a_key_that_the_provider_repeats_is_hidden(key: str) -> None:
    error = judged(401, openai(f"Incorrect API key provided: {key}. You sent Bearer {key}"))
    assert key not in str(error)
    assert "Incorrect API key provided: ***" in str(error)


def test_the_error_names_code_and_request() -> None:
    error = judged(404, openai("m", "invalid_request_error", "model_not_found"), x_request_id="r1")
    assert (error.code, error.request_id, str(error)) == (
        "model_not_found",
        "r1",
        "HTTP 404 model_not_found: m",
    )
    assert judged(429, anthropic("rate_limit_error", "m", "ramp_limit_exceeded")).code == "ramp_limit_exceeded"
    assert judged(529, anthropic("overloaded_error")).request_id == "req_1"
    assert classify(500, {"request-id": "r2"}, b"", request_id_header="request-id").request_id == "r2"


def test_a_provider_timeout_is_a_read_timeout_with_all_its_facts() -> None:
    error = judged(504, anthropic("timeout_error", "slow"), retry_after="2")
    assert isinstance(error, TimedOut)
    assert (error.phase, error.status, error.code, error.retry_after) == ("read", 504, "timeout_error", 2)
    assert error.verdict.retry


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (404, b"404 page not found"),
        (404, HTML),
        (404, b""),
        (404, b'{"detail":"Not Found"}'),
        (405, b'{"detail":"Method Not Allowed"}'),
        (404, openai("Invalid URL (POST /chat/completions)", "invalid_request_error")),
        (404, openai("File Not Found", "not_found_error", 404)),
        (404, anthropic("not_found_error", "Not Found")),
        (302, b""),
        (404, openai("Resource not found", None, "404")),
    ],
)
def test_a_wrong_path_hints_at_the_base_url(status: int, body: bytes) -> None:
    assert classify(status, {}, body, path_hint="look here").hint == "look here"


@pytest.mark.parametrize(
    "body",
    [
        openai("The model `x` does not exist", None, "model_not_found"),
        anthropic("not_found_error", "model: x"),
    ],
)
def test_a_missing_model_does_not_blame_the_base_url(body: bytes) -> None:
    assert classify(404, {}, body, path_hint="look here").hint is None


@pytest.mark.parametrize(
    ("status", "body", "part"),
    [
        (
            404,
            openai("This model is only supported in v1/responses and not in v1/chat/completions."),
            "Responses API",
        ),
        (404, openai("The model `gpt-9-pro` does not exist", None, "model_not_found"), "Responses API"),
        (400, openai("m", None, "unsupported_value", param="temperature"), "'temperature'"),
        (
            400,
            openai("Unsupported parameter: 'max_tokens' is not supported with this model."),
            "max_completion_tokens",
        ),
        (400, openai("Unsupported value: 'top_p' does not support 0.2 with this model."), "'top_p'"),
        (400, openai("Unrecognized request argument supplied: foo"), "'foo'"),
        (400, openai("property 'foo' is unsupported"), "'foo'"),
        (400, openai('Unknown name "foo": Cannot find field.'), "'foo'"),
        (400, anthropic("invalid_request_error", "top_k: Extra inputs are not permitted"), "'top_k'"),
        (
            400,
            anthropic("invalid_request_error", "`temperature` is deprecated for this model."),
            "'temperature'",
        ),
        (400, openai("Only the default (1) value is supported."), "refused parameter"),
        (400, openai("prompt is too long"), "shorten"),
        (429, openai(LARGE), "lower max_tokens"),
        (402, b"", "credit"),
        (429, openai("Resource Unavailable"), "service_tier"),
    ],
)
def test_a_hint_says_what_to_do(status: int, body: bytes, part: str) -> None:
    hint = judged(status, body).hint
    assert hint is not None
    assert part in hint


def test_a_wrong_key_has_no_hint_yet() -> None:
    assert judged(401, b"").hint is None


def test_a_model_of_another_vendor_is_not_sent_to_the_responses_api() -> None:
    assert judged(404, openai("The model `gemini-9-pro` does not exist", None, "model_not_found")).hint is None


def test_a_validation_error_does_not_repeat_the_prompt() -> None:
    body = b'{"detail":[{"loc":["body"],"msg":"bad","input":"my secret prompt"}]}'
    assert "secret" not in str(judged(422, body))


def test_the_tables_hold_only_error_classes_and_statuses() -> None:
    known = {kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, LLMError)}
    assert set(CODES.values()) | set(STATUSES.values()) <= known
    assert all(code == code.lower() for code in (*CODES, *TYPES))


def test_the_status_of_a_type_means_what_its_code_means() -> None:
    for word in set(CODES) & set(TYPES) - {"insufficient_quota"}:
        assert STATUSES.get(TYPES[word]) is CODES[word], word


JSONS = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                [
                    "error",
                    "message",
                    "type",
                    "code",
                    "param",
                    "status",
                    "details",
                    "metadata",
                    "retryDelay",
                    "violations",
                    "quotaId",
                    "raw",
                    "innererror",
                    "loc",
                    "msg",
                    "detail",
                    "object",
                    "reason",
                    "request_id",
                ]
            ),
            inner,
            max_size=6,
        )
    ),
    max_leaves=20,
)


@given(
    st.integers(0, 999),
    JSONS,
    st.dictionaries(st.sampled_from(["retry-after", "date", "x-should-retry"]), st.text()),
)
def test_no_json_body_breaks_the_taxonomy(status: int, body: object, headers: dict[str, str]) -> None:
    assert isinstance(classify(status, headers, orjson.dumps(body)), LLMError)


@given(st.integers(-1, 999), st.binary())
def test_no_bytes_break_the_taxonomy(status: int, body: bytes) -> None:
    error = classify(status, {}, body)
    assert isinstance(error, LLMError)
    assert len(error.message) <= 500


@pytest.mark.parametrize(
    "opening",
    [
        b'{"error":',
        b'{"error":{"message":',
        b"[",
        b'{"detail":[{"loc":[',
        b'{"error":{"details":[{"violations":',
    ],
)
@pytest.mark.parametrize("depth", [5, 300, 900, 5000])
def test_deep_nesting_does_not_break_the_taxonomy(opening: bytes, depth: int) -> None:
    closing = opening.translate(bytes.maketrans(b"{[", b"}]"), b'"abcdefghijklmnopqrstuvwxyz:')[::-1]
    for body in (opening * depth + b"1" + closing * depth, opening + b"[" * depth + b"]" * depth + closing):
        assert isinstance(judged(500, body), ServerError)


@pytest.mark.parametrize("body", [b"<" * 10**6, b"<script" * 10**5, b"<!--" * 10**5, b"<title" * 10**5])
def test_a_hostile_page_is_read_in_no_time(body: bytes) -> None:
    assert len(judged(500, body).message) <= 500
