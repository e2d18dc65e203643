"""llmlab: run a column of prompts through a slow, rate-limited, flaky LLM API and get a DataFrame back.

Example:
    lab = llmlab.Lab("openai:MODEL")         # Lab() talks to a simulated provider: no key, no cost
    out = await lab.run_many(df.prompt)      # one row per prompt, same index, latency and error columns
    llmlab.summary(out)
"""

from llmlab import journal as journal
from llmlab.errors import LLMError
from llmlab.events import Event
from llmlab.job import Job
from llmlab.lab import Lab
from llmlab.policies.admit import Admit
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

__all__ = [
    "AIMD",
    "Adaptive",
    "Admit",
    "Breaker",
    "Elastic",
    "Event",
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
