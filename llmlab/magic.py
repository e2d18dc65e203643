"""`%%llm`: a cell whose text is the prompt, with the answer streamed below it. Loaded by `%load_ext llmlab`.

    %%llm                          the last lab that was made in this session, or a new Lab()
    %%llm lab                      a variable that holds a Lab
    %%llm openai:MODEL             a new lab for that model
    %%llm lab --system "Be brief" --max-tokens 100 --temperature 0 -o reply

The answer is shown as text, never as HTML or Markdown. `-o name` keeps the whole Reply in a variable.
"""

import argparse
import shlex
import sys
import time
from typing import Any

from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell
from IPython.display import display

from llmlab.errors import LLMError
from llmlab.frontend import in_kernel
from llmlab.lab import Lab
from llmlab.show import HARMLESS
from llmlab.streams import Stream

EVERY = 0.1
"""Seconds between two drawings in a notebook."""

_labs: dict[str, Lab] = {}


def load(shell: InteractiveShell) -> None:
    """Register the magic with a shell."""

    def llm(line: str, cell: str) -> None:
        """Stream the answer to this cell's text; `%%llm --help` says more."""
        run_cell(shell, line, cell)

    shell.register_magic_function(llm, magic_kind="cell", magic_name="llm")  # type: ignore[call-arg, arg-type]


def run_cell(shell: InteractiveShell, line: str, cell: str) -> None:
    """Answer a cell's text below it.

    Raises:
        UsageError: the line is not usable, or the cell is empty.
    """
    options = _read(line)
    if options is None:
        return
    if not cell.strip():
        raise UsageError("%%llm: the cell is empty; write the prompt below the first line")
    lab = _lab(shell, options.lab)
    stream = lab.stream(
        cell.strip(), system=options.system, temperature=options.temperature, max_tokens=options.max_tokens
    )
    screen: _Cell | _Terminal = _Cell() if in_kernel() else _Terminal()
    try:
        lab.wait_for(lambda: _show(stream, screen))
    except LLMError as error:
        raise UsageError(f"%%llm: {type(error).__name__}: {error}") from None
    if options.output is not None:
        shell.user_ns[options.output] = stream.reply


async def _show(stream: Stream, screen: "_Cell | _Terminal") -> None:
    try:
        async for piece in stream:
            screen.add(piece)
    finally:
        screen.end()


class _Cell:
    """One output below the cell, redrawn as text."""

    def __init__(self) -> None:
        self._text, self._drawn = "", 0.0
        self._handle = display({"text/plain": ""}, raw=True, display_id=True)  # type: ignore[no-untyped-call]

    def add(self, piece: str) -> None:
        self._text += piece
        if time.monotonic() - self._drawn >= EVERY:
            self.end()

    def end(self) -> None:
        self._drawn = time.monotonic()
        if self._handle is not None:
            self._handle.update({"text/plain": self._text}, raw=True)


class _Terminal:
    """The terminal, piece by piece."""

    def add(self, piece: str) -> None:
        sys.stdout.write(piece.translate(HARMLESS))
        sys.stdout.flush()

    def end(self) -> None:
        sys.stdout.write("\n")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise UsageError(f"%%llm: {message}")


def _read(line: str) -> argparse.Namespace | None:
    """The options of a line; None if it only asked for help."""
    parser = _Parser(prog="%%llm", description="Stream the answer to this cell's text.")
    parser.add_argument("lab", nargs="?", help="a variable that holds a Lab, or provider:model")
    parser.add_argument("--system", help="system prompt")
    parser.add_argument("--temperature", type=float, help="0 to 2")
    parser.add_argument("--max-tokens", type=int, help="output tokens at most")
    parser.add_argument("-o", "--output", metavar="NAME", help="variable for the whole Reply")
    try:
        return parser.parse_args(shlex.split(line))
    except ValueError as error:
        raise UsageError(f"%%llm: {error}") from None
    except SystemExit:
        return None


def _lab(shell: InteractiveShell, wanted: str | None) -> Lab:
    if wanted is None:
        found = [value for value in shell.user_ns.values() if isinstance(value, Lab)]
        return found[-1] if found else _made("sim:small")
    value = shell.user_ns.get(wanted)
    if isinstance(value, Lab):
        return value
    if ":" not in wanted:
        raise UsageError(f"%%llm: {wanted!r} is neither a variable that holds a Lab nor provider:model")
    return _made(wanted)


def _made(model: str) -> Lab:
    """A lab of this session for a model; the same one each time, so that its limits and connections live on."""
    if model not in _labs:
        try:
            _labs[model] = Lab(model, loop="thread")
        except (TypeError, ValueError) as error:
            raise UsageError(f"%%llm: {error}") from None
    return _labs[model]
