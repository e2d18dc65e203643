"""The ways to misbehave, as a table: what the client sees, and whether sending again can help."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

Family: TypeAlias = Literal["refusal", "break", "body", "slow", "answer", "form", "quirk"]

HINTS = ("header", "float", "date", "ms", "text", "none")
"""How a 429 tells when to come back: Retry-After in whole seconds, in fractions, as a date, as
`retry-after-ms`, in its text only, not at all."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One way to misbehave."""

    name: str
    """The name used in `Faults` and in the statistics."""
    family: Family
    """What it does: refusal (an error answer), break (the connection ends), body (200 without an answer),
    slow, answer (a poor one), form (JSON that was asked for is not as it should be; other answers are), quirk (an
    unusual shape)."""
    about: str
    """What the client sees."""
    recoverable: bool = True
    """Whether the same request, sent again, can succeed. Quirks, slow and poor answers want no retry."""
    error: str = ""
    """The error of both dialects' tables that it answers with."""
    hint: str = "header"
    """How a 429 tells when to come back, one of HINTS."""

    @property
    def harmless(self) -> bool:
        """Whether a correct client takes the answer as it is, without a retry."""
        return self.family in ("quirk", "slow", "answer", "form")


def _limited(suffix: str, hint: str, about: str) -> Kind:
    return Kind(f"rate_limited{suffix}", "refusal", f"429, {about}", error="rate_limited", hint=hint)


def _refusal(name: str, about: str, *, mends: bool, error: str = "") -> Kind:
    return Kind(name, "refusal", about, mends, error or name)


def _quirk(name: str, about: str) -> Kind:
    return Kind(name, "quirk", about, recoverable=False)


def _form(name: str, about: str) -> Kind:
    return Kind(name, "form", f"where JSON was asked for: {about}", recoverable=False)


NONE = _quirk("", "nothing unusual")

_KINDS = (
    _limited("", "header", "Retry-After in whole seconds"),
    _limited("_float", "float", "Retry-After with a fraction (Anthropic: whole)"),
    _limited("_date", "date", "Retry-After as an HTTP date (Anthropic: whole seconds)"),
    _limited("_ms", "ms", "retry-after-ms only (Anthropic: Retry-After)"),
    _limited("_text", "text", "no headers, 'Please try again in 1.5s' in the text"),
    _limited("_bare", "none", "no hint at all"),
    _limited("_long", "header", "Retry-After of 200 s"),
    _refusal("slow_down", "429 slow_down / ramp_limit_exceeded: the rate grew too fast", mends=True),
    _refusal("too_large_429", "429 as for a rate limit, but the request is above the whole limit", mends=False),
    _refusal("quota", "429 insufficient_quota / enforced_spend_limit_reached", mends=False),
    _refusal("billing", "402", mends=False),
    _refusal("too_large", "413", mends=False),
    _refusal("bad_request", "400", mends=False),
    _refusal("unsupported_param", "400 unsupported_parameter / Extra inputs are not permitted", mends=False),
    _refusal("context_too_long", "400 context_length_exceeded / prompt is too long", mends=False),
    _refusal("content_filter", "400 content_filter", mends=False),
    _refusal("auth", "401", mends=False),
    _refusal("permission", "403", mends=False),
    _refusal("not_found", "404 model_not_found", mends=False),
    _refusal("timeout", "408", mends=True),
    _refusal("conflict", "409", mends=True),
    _refusal("server_error", "500", mends=True),
    _refusal("unavailable", "503", mends=True),
    _refusal("overloaded", "503 server_is_overloaded / 529 with x-should-retry: true", mends=True),
    _refusal("gateway_timeout", "504, after `stall` seconds", mends=True),
    _refusal("final_500", "500 with x-should-retry: false", mends=False, error="server_error"),
    _refusal("bad_gateway_html", "502 with an HTML page", mends=True, error="server_error"),
    _refusal("string_error", '503 {"error": "text"}, as vLLM', mends=True, error="unavailable"),
    _refusal("array_error", '503 [{"error": {…}}], as Google', mends=True, error="unavailable"),
    Kind("reset", "break", "the connection is reset before the response"),
    Kind("hangup", "break", "the connection is closed before the response"),
    Kind("stall", "break", "nothing comes for `stall` seconds, then the connection is closed"),
    Kind("reset_midway", "break", "reset in the body"),
    Kind("cut", "break", "closed in the body, which the HTTP framing tells"),
    Kind("cut_silent", "break", "closed in a body without length: HTTP sees nothing wrong"),
    Kind("stall_midway", "break", "the body stops for `stall` seconds, then the connection is closed"),
    Kind("malformed", "body", "200 with broken JSON, in the body or in an event"),
    Kind("html_200", "body", "200 with an HTML page"),
    Kind("error_in_stream", "body", "an error event in a 200 stream; a plain answer gets error_200"),
    Kind("error_200", "body", "200 with an error body"),
    Kind("no_choices", "body", "200 without any choice"),
    Kind("empty_body", "body", "200 with nothing in it"),
    Kind("slow_drip", "slow", "tokens come at a tenth of the speed", recoverable=False),
    Kind("empty", "answer", 'the answer is "", finish_reason stop', recoverable=False),
    Kind("refused", "answer", 'the answer is "", finish_reason content_filter / refusal', recoverable=False),
    _form("misfit_type", "a field of the wrong type"),
    _form("misfit_missing", "a required field that is not there"),
    _form("misfit_cut", "JSON that ends too early, finish_reason stop"),
    _form("misfit_prose", "no JSON at all"),
    _form("fenced", "JSON in a fence, ```json"),
    _form("chatty", "JSON with prose around it"),
    _quirk("comments", "`: ping` comments between the events"),
    _quirk("pings", "Anthropic's ping after each token; comments for OpenAI"),
    _quirk("unknown_events", "events of a type nobody knows (Anthropic); comments for OpenAI"),
    _quirk("crlf", "lines end with CR LF"),
    _quirk("cr", "lines end with CR"),
    _quirk("no_space", "no blank after `data:`"),
    _quirk("id_lines", "`id:` and `retry:` lines before each event"),
    _quirk("bom", "a byte order mark first"),
    _quirk("tiny_chunks", "one byte at a time"),
    _quirk("big_line", "a comment of 2 MB"),
    _quirk("no_final_blank", "no blank line after the last event"),
    _quirk("blank_lines", "blank lines before the body, as DeepSeek"),
    _quirk("empty_choices", "a first chunk without choices, as Azure"),
    _quirk("null_content", "null where other servers say an empty content, as llama.cpp"),
    _quirk("role_everywhere", "the role in every chunk, as Ollama"),
    _quirk("same_ids", "all answers have the same id, as Ollama"),
    _quirk("usage_on_last", "usage on the last chunk with choices"),
    _quirk("x_groq", "usage in x_groq as well, as Groq"),
    _quirk("no_usage", "no usage anywhere"),
    _quirk("no_done", "no [DONE] after the finish_reason"),
)

KINDS: dict[str, Kind] = {kind.name: kind for kind in _KINDS}
"""All kinds by name."""
