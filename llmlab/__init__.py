"""llmlab: run a column of prompts through a slow, rate-limited, flaky LLM API and get a DataFrame back.

Example:
    lab = llmlab.Lab("openai:MODEL")         # Lab() talks to a simulated provider: no key, no cost
    out = await lab.run_many(df.prompt)      # one row per prompt, same index, latency and error columns
    llmlab.summary(out)
"""

import importlib as _importlib
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

from llmlab import accessor as _accessor  # noqa: F401  registers df.llm with pandas
from llmlab import journal as journal
from llmlab.errors import LLMError
from llmlab.events import Event
from llmlab.job import Job
from llmlab.lab import Lab
from llmlab.nested import enable_nested
from llmlab.policies.admit import Admit
from llmlab.policies.cache import Cache
from llmlab.policies.fallback import Fallback
from llmlab.policies.hedge import Hedge
from llmlab.policies.pack import Pack
from llmlab.policies.retry import Retry
from llmlab.policies.timeout import Timeout
from llmlab.prices import Price
from llmlab.rules.adaptive import Adaptive
from llmlab.rules.breaker import Breaker
from llmlab.rules.classic import AIMD, Fixed, Gradient
from llmlab.rules.elastic import Elastic
from llmlab.rules.rate import Rate
from llmlab.rules.slots import Slots
from llmlab.strategy import Strategy
from llmlab.types import Message, Outcome, Prompt, Reply, Usage
from llmlab.version import __version__
from llmlab.views import MAKERS as _MAKERS
from llmlab.views import Maker as _Maker
from llmlab.views import View as _View

if _TYPE_CHECKING:
    from llmlab import fits as fits
    from llmlab import plots as plots
    from llmlab.recommend import Recommendation as Recommendation
    from llmlab.scenario import Scenario as Scenario
    from llmlab.stats import summary as summary
    from llmlab.twin import NotIdentified as NotIdentified
    from llmlab.twin import Twin as Twin

__all__ = [
    "AIMD",
    "Adaptive",
    "Admit",
    "Breaker",
    "Cache",
    "Elastic",
    "Event",
    "Fallback",
    "Fixed",
    "Gradient",
    "Hedge",
    "Job",
    "LLMError",
    "Lab",
    "Message",
    "NotIdentified",
    "Outcome",
    "Pack",
    "Price",
    "Prompt",
    "Rate",
    "Recommendation",
    "Reply",
    "Retry",
    "Scenario",
    "Slots",
    "Strategy",
    "Timeout",
    "Twin",
    "Usage",
    "__version__",
    "enable_nested",
    "summary",
]

_LAZY = {
    "NotIdentified": "twin",
    "Recommendation": "recommend",
    "Scenario": "scenario",
    "Twin": "twin",
    "fits": "fits",
    "plots": "plots",
    "summary": "stats",
}
"""Names that are imported when they are first asked for, and where they stand: few sessions need them."""

if not _TYPE_CHECKING:  # for a checker, a name that is not there must not be Any

    def __getattr__(name: str) -> _Any:
        if name not in _LAZY:
            raise AttributeError(f"module 'llmlab' has no attribute {name!r}")
        module = _importlib.import_module(f"llmlab.{_LAZY[name]}")
        return module if name == _LAZY[name] else getattr(module, name)

    def __dir__() -> list[str]:
        return sorted({*globals(), *_LAZY})


def _opener(usual: tuple[str, str], **others: tuple[str, str]) -> _Maker:
    def open_view(job: _Any) -> _View:
        # Widgets are imported when the first one is displayed, not before.
        module, name = others.get(job.name, usual)
        view: _View = getattr(_importlib.import_module(module), name)(job)
        return view

    return open_view


_MAKERS.update(
    {
        "widget": _opener(
            ("llmlab.widgets", "BoardView"),
            show=("llmlab.gridview", "GridView"),
            tune=("llmlab.tuneview", "TuneView"),
        ),
        "html": _opener(
            ("llmlab.tables", "HtmlView"),
            show=("llmlab.gridhtml", "GridHtml"),
            tune=("llmlab.tunehtml", "TuneHtml"),
        ),
    }
)


def load_ipython_extension(shell: _Any) -> None:
    """Register the cell magic `%%llm`; called by `%load_ext llmlab`."""
    _importlib.import_module("llmlab.magic").load(shell)
