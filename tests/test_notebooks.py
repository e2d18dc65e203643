"""The shipped notebooks run as they stand, and a lab works in a kernel and in plain IPython."""

import asyncio
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
QUIET = "import warnings; import llmlab, asyncio, pandas as pd\nfrom llmlab import core as _c; _c._told = True"


def execute(notebook: nbformat.NotebookNode, folder: Path) -> nbformat.NotebookNode:
    client = NotebookClient(notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": folder}})
    executed: nbformat.NotebookNode = asyncio.run(client.async_execute())
    return executed


def run_cells(cells: list[str], folder: Path) -> list[str]:
    """Run cells in a kernel; what each showed, as text."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in [QUIET, *cells]])
    executed = execute(notebook, folder)
    return ["\n".join(text_of(output) for output in cell.outputs).strip() for cell in executed.cells[1:]]


def text_of(output: nbformat.NotebookNode) -> str:
    return str(output["text"] if output.output_type == "stream" else output.data["text/plain"])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_a_shipped_notebook_runs_as_it_stands(path: Path, tmp_path: Path) -> None:
    execute(nbformat.read(path, as_version=4), tmp_path)


def test_there_are_notebooks() -> None:
    assert [path.stem for path in NOTEBOOKS] == [
        "01_first_calls", "02_live", "03_map_reduce_and_types", "04_strategy_lab", "05_service",
    ]  # fmt: skip


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_a_kernel_awaits_takes_results_and_runs_jobs_between_cells(tmp_path: Path) -> None:
    shown = run_cells(
        [
            "lab = llmlab.Lab()\nout = await lab.run_many(['a', 'b'], progress=False)\nout.status.tolist()",
            "fresh = llmlab.Lab()\nfresh.run_many(['a', 'b'], progress=False).result().status.tolist()",
            "'nest_asyncio2' in __import__('sys').modules and hasattr(asyncio, '_nest_asyncio2')",
            "lab.run('again, on the kernel\\'s own loop').result().finish_reason",
            "job = lab.run_many(['a', 'b'], progress=False)",
            "await asyncio.sleep(3)",
            "job.done",
            "(await job).status.tolist()",
            "lab.run_many(['a', 'b'], progress=True).result().status.tolist()",
        ],
        tmp_path,
    )
    assert shown[0] == shown[1] == "['ok', 'ok']"
    assert shown[2] == "False", "a lab not yet bound to the kernel's loop needs no re-entry"
    assert shown[3] == "'stop'"
    assert shown[6] == "True", "a job goes on in the background between cells"
    assert shown[7] == "['ok', 'ok']"
    assert "2 of 2" in shown[8]


def test_plain_ipython_awaits_at_the_prompt(tmp_path: Path) -> None:
    script = tmp_path / "session.ipy"
    script.write_text(
        f"{QUIET}\nlab = llmlab.Lab()\n"
        "out = await lab.run_many(['a', 'b'])\nprint(out.status.tolist())\n"
        "print(lab.run('c').result().finish_reason)\n"
    )
    done = subprocess.run(  # noqa: S603  our own interpreter
        [sys.executable, "-m", "IPython", "--simple-prompt", "--no-banner", "--colors=NoColor", str(script)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={"HOME": str(tmp_path), "PATH": "", "IPYTHONDIR": str(tmp_path)},
    )
    assert done.stdout.splitlines()[-2:] == ["['ok', 'ok']", "stop"], done.stdout + done.stderr
    assert "Error" not in done.stderr


def test_a_script_leaves_nothing_open_and_says_nothing(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        f"{QUIET}\nlab = llmlab.Lab()\nasync def main():\n    return await lab.run_many(['a', 'b'])\n"
        "print(asyncio.run(main()).status.tolist(), lab.run('c').result().finish_reason)\n"
    )
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-X", "dev", "-W", "error", str(script)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == "['ok', 'ok'] stop\n"
    assert done.stderr == ""
