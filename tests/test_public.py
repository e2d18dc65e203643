"""What is public is documented, annotated and of a size that can be read; counted over the source, not imported."""

import ast
import importlib
import inspect
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from types import ModuleType

import pytest

import llmlab

PACKAGE = Path(llmlab.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))

# DESIGN section 6.
FUNCTION_MEDIAN, FUNCTION_P90, FUNCTION_MAX, MODULE_MAX = 8, 25, 60, 350

Function = ast.FunctionDef | ast.AsyncFunctionDef


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


# -- names ------------------------------------------------------------------------------------------------


def test_the_public_names_are_sorted_and_each_is_there_once() -> None:
    assert llmlab.__all__ == sorted(set(llmlab.__all__))


@pytest.mark.parametrize("name", llmlab.__all__)
def test_a_public_name_can_be_imported(name: str) -> None:
    assert getattr(importlib.import_module("llmlab"), name) is not None


def test_nothing_else_looks_public() -> None:
    found = {name for name in dir(llmlab) if not isinstance(getattr(llmlab, name), ModuleType)}
    public = {name for name in found if not name.startswith("_")} | {"__version__"}
    assert public - {"load_ipython_extension"} == set(llmlab.__all__), "and what IPython looks for by that name"


def test_what_looks_like_a_module_is_one_of_ours() -> None:
    modules = {name: value for name, value in vars(llmlab).items() if isinstance(value, ModuleType)}
    public = {name: value.__name__ for name, value in modules.items() if not name.startswith("_")}
    assert public == {name: f"llmlab.{name}" for name in public}


def test_importing_the_package_imports_no_drawing_and_no_server() -> None:
    drawing, others = ("matplotlib", "ipywidgets", "anywidget", "IPython"), ("nest_asyncio2", "genai_prices", "fastapi")
    heavy = (*drawing, *others, "openai", "anthropic")
    code = f"import sys, llmlab; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603
    assert done.stdout.strip() == "[]"


# -- words and types --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Public:
    """One public thing: where it stands, and its node."""

    where: str
    node: ast.AST
    documented: bool


def is_public(name: str) -> bool:
    return not name.startswith("_")


def said_below(body: list[ast.stmt], at: int) -> bool:
    """Whether a text stands right below a statement, as the doc line of a field."""
    following = body[at + 1] if at + 1 < len(body) else None
    return isinstance(following, ast.Expr) and isinstance(getattr(following.value, "value", None), str)


def decorators(node: ast.ClassDef | Function) -> set[str]:
    return {ast.unparse(each).partition("(")[0].rpartition(".")[2] for each in node.decorator_list}


def has_fields(node: ast.ClassDef) -> bool:
    """Dataclasses, protocols and named tuples say what they hold in their body."""
    bases = {ast.unparse(base).partition("[")[0].rpartition(".")[2] for base in node.bases}
    return "dataclass" in decorators(node) or bool(bases & {"Protocol", "NamedTuple", "TypedDict"})


def public_of(body: list[ast.stmt], where: str, *, fields: bool = False) -> Iterator[Public]:
    for at, node in enumerate(body):
        if isinstance(node, Function) and is_public(node.name):
            if not decorators(node) & {"setter", "deleter", "overload"}:  # documented where they begin
                yield Public(f"{where}.{node.name}", node, ast.get_docstring(node) is not None)
        elif isinstance(node, ast.ClassDef) and is_public(node.name):
            yield Public(f"{where}.{node.name}", node, ast.get_docstring(node) is not None)
            yield from public_of(node.body, f"{where}.{node.name}", fields=has_fields(node))
        elif fields and isinstance(node, ast.AnnAssign) and is_public(name := ast.unparse(node.target)):
            yield Public(f"{where}.{name}", node, said_below(body, at))


def everything_public(path: Path) -> list[Public]:
    return list(public_of(tree_of(path).body, name_of(path)))


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_says_what_it_is_for(path: Path) -> None:
    assert ast.get_docstring(tree_of(path)), name_of(path)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_everything_public_is_documented(path: Path) -> None:
    assert [each.where for each in everything_public(path) if not each.documented] == []


def bare(node: Function) -> list[str]:
    """The arguments of a function that have no type, and "return" if it does not say what it gives."""
    given = node.args
    every = [*given.posonlyargs, *given.args, *given.kwonlyargs, *filter(None, (given.vararg, given.kwarg))]
    missing = [each.arg for each in every if each.annotation is None and each.arg not in ("self", "cls")]
    return missing + (["return"] if node.returns is None else [])


def functions_of(tree: ast.AST) -> list[Function]:
    return [node for node in ast.walk(tree) if isinstance(node, Function)]


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_every_function_is_annotated_in_full(path: Path) -> None:
    """Private ones too: the checker sees through them into the public ones."""
    assert {node.name: bare(node) for node in functions_of(tree_of(path)) if bare(node)} == {}


DOORS = (llmlab.Lab, llmlab.Job, llmlab.Strategy, llmlab.Prompt, llmlab.Message)
VERBS = [
    (f"{each.__name__}.{name}", getattr(each, name))
    for each in DOORS
    for name, value in vars(each).items()
    if is_public(name) and (callable(value) or isinstance(value, classmethod))
]


@pytest.mark.parametrize(
    "verb", [verb for _, verb in VERBS] + [llmlab.summary], ids=[n for n, _ in VERBS] + ["summary"]
)
def test_what_users_call_takes_two_arguments_by_position_at_most(verb: Callable[..., object]) -> None:
    parameters = inspect.signature(verb).parameters.values()
    by_place = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    assert len([name for name in by_place if name != "self"]) <= 2


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_nothing_is_left_to_be_done(path: Path) -> None:
    words = path.read_text(encoding="utf-8").replace("(", " ").replace(":", " ").split()
    assert not {"TODO", "FIXME", "XXX", "HACK"} & set(words)


# -- sizes ------------------------------------------------------------------------------------------------


def length(node: Function) -> int:
    """Lines of a function's body, its docstring left out."""
    body = node.body[1:] if ast.get_docstring(node) is not None else node.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def lengths() -> dict[str, int]:
    return {
        f"{name_of(path)}:{node.lineno} {node.name}": length(node)
        for path in MODULES
        for node in functions_of(tree_of(path))
    }


def test_half_of_all_functions_are_short() -> None:
    assert median(lengths().values()) <= FUNCTION_MEDIAN


def test_nine_functions_of_ten_fit_on_a_screen() -> None:
    every = sorted(lengths().values())
    assert every[int(0.9 * len(every))] <= FUNCTION_P90


def test_no_function_is_long() -> None:
    assert {name: lines for name, lines in lengths().items() if lines > FUNCTION_MAX} == {}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_is_split_before_it_gets_long(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MODULE_MAX
