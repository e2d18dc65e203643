"""Print what becomes of hostile texts on each surface of a notebook: `python -m tests.browser.hostile_table`."""

import tempfile
from pathlib import Path

from tests.browser.hostile import as_table, look_at
from tests.browser.jupyter import jupyter, kernels
from tests.browser.notebook import browser, open_notebook


def main() -> None:
    """Run them all in the first kernel."""
    kernel = kernels()[0]
    with (
        tempfile.TemporaryDirectory() as folder,
        jupyter(Path(folder, "jupyter"), [kernel]) as server,
        browser(Path(folder, "profile")) as context,
    ):
        print(as_table(look_at(lambda cells: open_notebook(context, server, "hostile.ipynb", cells, kernel))))  # noqa: T201


if __name__ == "__main__":
    main()
