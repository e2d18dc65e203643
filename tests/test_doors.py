"""Verbs that are loaded when they are first used, and what an import of llmlab leaves out."""

import inspect
import subprocess
import sys

import pytest

import llmlab
from llmlab.batch.verbs import Batching
from llmlab.combining import Combining
from llmlab.core import Core
from llmlab.factorial import Factorial
from llmlab.tuning import TuningVerb

LATE = ("compare", "sweep", "tune", "use", "submit_batch", "attach_batch", "run_chains", "map_reduce", "grid")


def run(code: str) -> str:
    return subprocess.check_output([sys.executable, "-c", code], text=True)  # noqa: S603  our own


def test_importing_llmlab_leaves_out_what_few_sessions_need() -> None:
    loaded = set(run("import llmlab, sys; print(*sys.modules)").split())
    for name in (
        "sim",
        "batch.verbs",
        "reduce",
        "factors",
        "tuning",
        "sweep",
        "compare",
        "twin",
        "fits",
        "stats",
        "scenario",
        "service",
    ):
        assert f"llmlab.{name}" not in loaded
    assert not {"matplotlib", "ipywidgets", "anywidget", "fastapi", "pydantic", "scipy", "aiohttp"} & loaded


def test_a_lab_on_a_real_provider_does_without_the_simulator() -> None:
    code = "import llmlab, sys; llmlab.Lab('openai:m', api_key='k'); print(*sys.modules)"
    assert "llmlab.sim" not in run(code).split()


def test_every_verb_that_is_loaded_late_has_a_door() -> None:
    theirs = {name for mixin in (Batching, Combining, Factorial, TuningVerb) for name in dir(mixin)} - {*dir(Core)}
    assert {name for name in theirs if not name.startswith("_")} == {*LATE}


@pytest.mark.parametrize("name", LATE)
def test_a_late_verb_is_like_any_other(name: str) -> None:
    verb = getattr(llmlab.Lab, name)
    assert inspect.getdoc(verb)
    assert next(iter(inspect.signature(verb).parameters)) == "self"
    assert name in dir(llmlab.Lab)
    lab = llmlab.Lab("openai:m", api_key="k")
    assert getattr(lab, name).__self__ is lab


def test_a_late_verb_may_be_overridden_and_called_from_there() -> None:
    code = """
import llmlab
class Own(llmlab.Lab):
    def attach_batch(self, *args, **options):
        return super().attach_batch(*args, **options)
try:
    Own("openai:m", api_key="k").attach_batch(3)
except TypeError as error:
    print(error)
"""
    assert "id must be a job's id" in run(code)


@pytest.mark.parametrize("name", ["Twin", "NotIdentified", "Recommendation", "Scenario", "fits", "summary"])
def test_a_name_that_is_imported_late_is_there_all_the_same(name: str) -> None:
    assert name in dir(llmlab)
    assert run(f"from llmlab import {name}; print({name}.__name__)").strip().rpartition(".")[2] == name
