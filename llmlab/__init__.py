"""llmlab: run a column of prompts through a slow, rate-limited, flaky LLM API and get a DataFrame back.

Example:
    lab = llmlab.Lab("openai:MODEL")         # Lab() talks to a simulated provider: no key, no cost
    out = await lab.run_many(df.prompt)      # one row per prompt, same index, latency and error columns
    llmlab.summary(out)
"""

from importlib import import_module
from typing import Any

from llmlab import journal as journal
from llmlab.errors import LLMError
from llmlab.events import Event
from llmlab.job import Job
from llmlab.lab import Lab
from llmlab.policies.admit import Admit
from llmlab.policies.cache import Cache
from llmlab.policies.fallback import Fallback
from llmlab.policies.retry import Retry
from llmlab.policies.timeout import Timeout
from llmlab.prices import Price
from llmlab.rules.adaptive import Adaptive
from llmlab.rules.breaker import Breaker
from llmlab.rules.classic import AIMD, Fixed, Gradient
from llmlab.rules.elastic import Elastic
from llmlab.rules.rate import Rate
from llmlab.rules.slots import Slots
from llmlab.stats import summary
from llmlab.strategy import Strategy
from llmlab.types import Message, Outcome, Prompt, Reply, Usage
from llmlab.version import __version__
from llmlab.views import MAKERS, View

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
    "Job",
    "LLMError",
    "Lab",
    "Message",
    "Outcome",
    "Price",
    "Prompt",
    "Rate",
    "Reply",
    "Retry",
    "Slots",
    "Strategy",
    "Timeout",
    "Usage",
    "__version__",
    "summary",
]


def _board(job: Any) -> View:
    # Widgets are imported when the first one is displayed, not before.
    view: View = import_module("llmlab.widgets").BoardView(job)
    return view


def _table(job: Any) -> View:
    view: View = import_module("llmlab.tables").HtmlView(job)
    return view


MAKERS.update(widget=_board, html=_table)
