"""Ask again, with what was wrong, when an answer does not fit the schema that it was asked for.

    the answer                                  what happens
    fits                                        it is the reply, with its `parsed`
    does not fit, and was not asked too often   its text and the reader's complaint follow the prompt, and all goes
                                                again through the layers below: in line, retried, paid for
    the same, but nothing can come of it        SchemaMismatch: refused by the model, or a tool was called instead
    the same, but its text was shown already    SchemaMismatch: what was read cannot be taken back
    does not fit, and was asked too often       SchemaMismatch, with the last answer
    cannot be asked for in that form            asked in the next one that the server may know, at once

Errors of the provider are never part of what is asked. The prompt is the original one again for whoever stands above.
"""

import asyncio
from dataclasses import dataclass, replace

from llmlab.call import Call, Handler, Reader
from llmlab.errors import LLMError, NoStructuredOutput, SchemaMismatch
from llmlab.events import Retrying
from llmlab.types import Message, Prompt, Reply

FORMS = 2
"""Forms at most that a server may refuse before it is asked in plain words."""
QUOTED = 8_000
"""Characters of an answer that does not fit which are sent back with the complaint."""
HOPELESS = ("content_filter", "tool_calls")
"""Finish reasons of answers that no complaint will make fit."""


@dataclass
class Reask:
    """Hold answers to what `schema=` asks for. Calls that ask for text pass through.

    Stands below Fallback, so that another target is asked when this one's answers do not fit, and above Retry.
    """

    async def __call__(self, call: Call, inner: Handler) -> Reply:
        """Pass the call on until its answer fits, or there is no point in going on."""
        if call.reader is None:
            return await inner(call)
        asked = call.prompt
        try:
            return await _until_it_fits(call, call.reader, asked, inner)
        finally:
            call.prompt = asked


async def _until_it_fits(call: Call, reader: Reader, asked: Prompt, inner: Handler) -> Reply:
    left, forms = reader.reask, FORMS
    while True:
        try:
            return _read(call, reader, await inner(call))
        except NoStructuredOutput as error:
            forms -= 1
            if forms < 0 or call.committed:
                raise
            await _tell(call, error)
        except SchemaMismatch as misfit:
            left -= 1
            if left < 0 or not _may_help(call, misfit):
                raise
            await _tell(call, misfit)
            call.kind, call.prompt = "reask", _corrected(asked, misfit)


def _read(call: Call, reader: Reader, reply: Reply) -> Reply:
    try:
        return reader.read(reply)
    except SchemaMismatch:
        if reply.usage is not None:
            call.waste(reply.usage, reply.cost_usd)
        raise


async def _tell(call: Call, error: LLMError) -> None:
    call.emit(Retrying(call.index, call.attempts, 0.0, error))
    await asyncio.sleep(0)  # a job that stops has cancelled the row by now: nothing more is sent


def _may_help(call: Call, misfit: SchemaMismatch) -> bool:
    if call.committed:
        misfit.hint = "it was not asked for again, as its text was handed out already"
    return not call.committed and misfit.reply.finish_reason not in HOPELESS


def _corrected(asked: Prompt, misfit: SchemaMismatch) -> Prompt:
    """The prompt with the last answer and what is wrong with it. An empty answer is simply asked for again."""
    said = misfit.reply.content.strip()
    if not said:
        return asked
    complaint = f"That answer does not fit:\n{misfit.message}\nGive the whole answer again, corrected, as JSON only."
    if "{" not in said and asked.schema is not None:  # perhaps a server that ignores what it does not know
        complaint += f" {asked.schema.instruction}"
    quoted = said if len(said) <= QUOTED else f"{said[:QUOTED]}…"
    return replace(asked, messages=(*asked.messages, Message("assistant", quoted), Message("user", complaint)))
