"""In which form a model is held to a JSON schema: learned from what its server refuses or ignores.

    form            what is sent                                                     who knows it
    json_schema     the schema, in the dialect's own field                           most providers
    json_object     "any JSON object", and the schema in the prompt's words          some older ones
    instructions    the schema in the prompt's words, nothing else                   every model

A model starts with the best form that its dialect knows, and goes on to the next for good when its server refuses one
with a 400, or ignores it: its first three answers are no JSON at all. Both are said once. The first answers are the
shortest ones, and refusals are short: when one comes later that is JSON and nothing else, its form counts again.
"""

import re
from collections import Counter

from llmlab.errors import BadRequest, ContentBlocked, ContextTooLong, LLMError, NoStructuredOutput, RequestTooLarge
from llmlab.progress import say
from llmlab.types import Form

DEAF = 3
"""Answers without any JSON, and none with it, after which a form counts as ignored."""
TELLING = ("first", "fallback")
"""Kinds of attempts whose answers tell whether a form is obeyed: who is asked again has been told of it in words."""

_REFUSED = re.compile(
    r"response.?format|output.?(?:config|format)|json.?(?:object|mode)|structured.?output|grammar|guided|schema",
    re.IGNORECASE,
)


class Forms:
    """The form that each model of an endpoint takes, as its answers have taught.

    Args:
        name: The provider's name, for messages.
        known: The forms of its dialect, the best first; instructions are always the last.
    """

    def __init__(self, name: str, known: tuple[Form, ...]) -> None:
        self._name = name
        self._known: tuple[Form, ...] = (*known, "instructions")
        self._at: Counter[str] = Counter()
        self._deaf: Counter[str] = Counter()
        self._heard: set[str] = set()

    def of(self, model: str) -> Form:
        """The form to ask a model in."""
        return self._known[self._at[model]]

    def judge(self, model: str, form: Form, error: LLMError) -> LLMError:
        """The error itself; or, if it refuses the form, the one that says so, and the next form counts from now on."""
        other = isinstance(error, ContentBlocked | ContextTooLong | RequestTooLarge)
        said = f"{error.code} {error.message} {error.hint}"
        if form == "instructions" or other or not isinstance(error, BadRequest) or not _REFUSED.search(said):
            return error
        self._go_on(model, form, error.message)
        return NoStructuredOutput(error.message, status=error.status, code=error.code, request_id=error.request_id)

    def listen(self, model: str, form: Form, text: str, *, kind: str = "first") -> None:
        """Learn from a complete answer to an attempt of some kind whether the form is obeyed."""
        if form == "instructions" or kind not in TELLING:
            return
        if text.lstrip().startswith("{"):
            self._go_back(model, form)
        if "{" in text:
            self._heard.add(model)
        if model in self._heard:
            return
        self._deaf[model] += 1
        if self._deaf[model] >= DEAF:
            self._go_on(model, form, "it ignores the field: its answers are no JSON")

    def _go_on(self, model: str, form: Form, why: str) -> None:
        at = self._known.index(form) + 1
        if self._at[model] >= at:  # requests in flight are all refused alike
            return
        self._at[model], self._deaf[model] = at, 0
        say(f"llmlab: {self._name}:{model} takes no {form}; from now on it is asked {_WORDS[self.of(model)]}. {why}")

    def _go_back(self, model: str, form: Form) -> None:
        at = self._known.index(form)
        if self._at[model] > at:
            self._at[model] = at
            say(f"llmlab: {self._name}:{model} takes {form} after all, and is asked so again")


_WORDS = {"json_object": "for a JSON object, told which", "instructions": "in the prompt's words"}
