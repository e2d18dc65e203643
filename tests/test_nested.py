import asyncio
import subprocess
import sys
from importlib import metadata

import pytest

from llmlab import nested


def versions(monkeypatch: pytest.MonkeyPatch, **found: str) -> None:
    def version(package: str) -> str:
        try:
            return found[package.replace("-", "_")]
        except KeyError:
            raise metadata.PackageNotFoundError(package) from None

    monkeypatch.setattr("importlib.metadata.version", version)
    monkeypatch.setitem(sys.modules, "ipykernel", object())
    monkeypatch.delattr(asyncio, "_nest_patched", raising=False)
    monkeypatch.delattr(asyncio, "_nest_asyncio2", raising=False)


def test_without_a_running_loop_there_is_nothing_to_nest_in() -> None:
    with pytest.raises(RuntimeError, match="no event loop runs here"):
        nested.enable_nested()


def test_asyncio_run_works_inside_a_running_loop_afterwards() -> None:
    code = """
import asyncio, llmlab
async def inner(): return 42
async def main():
    llmlab.enable_nested()
    return asyncio.run(inner())
print(asyncio.run(main()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)  # noqa: S603
    assert done.stdout == "42\n", done.stderr


def test_versions_that_lose_cells_are_warned_of(monkeypatch) -> None:
    versions(monkeypatch, ipykernel="7.1.0", nest_asyncio2="1.7.2")
    (trouble,) = nested.troubles()
    assert "pip install -U nest-asyncio2" in trouble


@pytest.mark.parametrize(("kernel", "ours"), [("7.1.0", "1.7.3"), ("7.0.1", "1.7.2"), ("6.31.0", "1.7.1")])
def test_versions_that_lose_none_are_not(monkeypatch, kernel: str, ours: str) -> None:
    versions(monkeypatch, ipykernel=kernel, nest_asyncio2=ours)
    assert nested.troubles() == []


def test_an_older_patch_in_place_is_warned_of(monkeypatch) -> None:
    versions(monkeypatch, ipykernel="7.4.0", nest_asyncio2="1.7.4")
    monkeypatch.setattr(asyncio, "_nest_patched", True, raising=False)
    (trouble,) = nested.troubles()
    assert "nest_asyncio has patched asyncio here" in trouble


def test_outside_of_a_kernel_there_is_nothing_to_warn_of(monkeypatch) -> None:
    versions(monkeypatch, ipykernel="7.4.0", nest_asyncio2="1.7.1")
    monkeypatch.delitem(sys.modules, "ipykernel")
    assert nested.troubles() == []
