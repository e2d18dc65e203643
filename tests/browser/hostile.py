"""Hostile texts, the places where they come in, and what becomes of them on each surface of a notebook.

They come in as prompt, as answer, as a provider's error message, as the name of an error's class, as a model's name:

    text        it stands there, letter by letter
    -           the surface does not show it
    markup      a part of it was taken for HTML or Markdown
    maths       a part of it was typeset
    EXECUTED    a script in it ran

`python -m tests.browser.hostile_table` prints all of it.
"""

import json
from typing import Any

from tests.browser.boards import LAB, BoardOnPage
from tests.browser.notebook import Notebook, Open

TEXTS = {
    "img": """see <img src=x onerror="(window.pwned ??= []).push('img')">""",
    "script": """see <script>(window.pwned ??= []).push('script')</script>""",
    "svg": """see <svg onload="(window.pwned ??= []).push('svg')"></svg>""",
    "href": """see <a href="javascript:(window.pwned ??= []).push('href')">this</a>""",
    "iframe": """see <iframe srcdoc="<script>(parent.pwned ??= []).push('iframe')</script>"></iframe>""",
    "style": """see <style>.jp-Notebook { outline: 7px solid rgb(1, 2, 3) }</style>""",
    "form": """see <form action="https://example.invalid"><button>pay</button></form>""",
    "attribute": """see "><img src=x onerror="(window.pwned ??= []).push('attribute')">""",
    "cell": """see </td></tr></table><img src=x onerror="(window.pwned ??= []).push('cell')">""",
    "Markdown": """see **bold** [this](javascript:(window.pwned??=[]).push('Markdown')) ![it](x)""",
    "maths": r"""see $x^2$ and \(y\) and $\frac{a$""",
    "formula": r"""see $\href{javascript:(window.pwned ??= []).push('formula')}{it}$""",
}
"""Each begins with a word, or llmlab would take an error's text for a gateway's page and keep its words only."""

_SETUP = f"""
import httpx, json, pandas as pd
from IPython.display import HTML, display
get_ipython().run_line_magic("load_ext", "llmlab")
from llmlab import Breaker, Retry, Strategy

TEXTS = list(json.loads({json.dumps(TEXTS)!r}).values())
ALL = " ".join(TEXTS)
pd.set_option("display.max_colwidth", None, "display.max_columns", None, "display.max_rows", None)

class Hostile(Simulator):
    "Says the text again, refuses it, is too busy for it once, or breaks down in an error of that name."
    def __init__(self):
        super().__init__(physics=Physics.instant(), say=lambda ask: ask.text)
        self.seen = set()
    async def handle_async_request(self, request):
        said = json.loads(await request.aread())["messages"][-1]["content"]
        how, _, text = said.partition(": ")
        error = {{"message": text, "type": text, "code": text}}
        if how == "refuse":
            return httpx.Response(400, json={{"error": error}}, request=request)
        if how == "busy" and said not in self.seen:
            self.seen.add(said)
            return httpx.Response(503, json={{"error": error}}, request=request)
        if how == "break":
            raise type(text, (Exception,), {{}})(text)
        if how == "wait":
            await asyncio.sleep(600)
        return await super().handle_async_request(request)

def prompts(*hows, texts=TEXTS):
    return [f"{{how}}: {{text}}" for how in hows for text in texts]

def make_hostile(model="small", **settings):
    stack = Strategy.default(concurrency=4, retry=Retry(base=0.01), breaker=Breaker(min_calls=1000))
    return llmlab.Lab(f"openai:{{model}}", transport=Hostile(), strategy=stack, **settings)

lab, named, threaded = make_hostile(), make_hostile(ALL), make_hostile(loop="thread")
"""
_CONTROL = """display(HTML('<p>$z^2$ <img src=x onerror="(window.pwned ??= []).push(\\'control\\')"></p>'))"""
_LIVE = "job{0} = make_hostile().run_many(prompts('break', texts=TEXTS[{1}:{2}]) + ['wait: '])\njob{0}"
_STOP = "_ = [job.cancel() for job in (job0, job1, job2)]"
_ASK = """
job = lab.run_many(prompts("say", "refuse", "busy", "break"), journal="hostile.sqlite", progress=False)
out = await job
"""
_REFUSED = """
for prompt in prompts("refuse"):
    try:
        await lab.run(prompt)
    except llmlab.LLMError:
        get_ipython().showtraceback()
"""
_REDRAWN = "os.environ['LLMLAB_UI'] = 'html'\n_ = await lab.run_many(prompts('break', texts=TEXTS[{}:{}]))"
SURFACES = {
    "frame: prompt": "out[['prompt']]",
    "frame: content": "out[['content']]",
    "frame: error": "out[['error']]",
    "frame: error_type": "out[['error_type']]",
    "frame: model": "(await named.run_many(['say: a'], progress=False))[['model']]",
    "out.head()": "out.head(len(out))[['content', 'error']]",
    "df.join(out)": "pd.DataFrame({'asked': prompts('say')}).join(out[['content']])",
    "out.style": "out[['content', 'error']].style",
    "journal.read": "llmlab.journal.read('hostile.sqlite')[['content', 'error']]",
    "job.attempts": "job.attempts",
    "job.events": "job.events",
    "job.limits": "named.last.limits[['target']].drop_duplicates()",
    "summary": "llmlab.summary(out)",
    "reprs": "[await lab.run(prompt) for prompt in prompts('say')], lab, named, named.last",
    "traceback": _REFUSED,
    "lab.show": "_ = await named.show(prompts('say', 'break'))",
    "%%llm": "get_ipython().run_cell_magic('llm', 'threaded', 'say: ' + ALL)",
}
"""Cells that show what came in; after the boards."""

_PARTS = {
    "img": "img[src='x']", "attribute": "img[src='x']", "cell": "img[src='x']", "script": "script",
    "svg": "svg[onload]", "href": "a[href^='javascript']", "iframe": "iframe", "style": "style", "form": "form",
    "Markdown": "img[src='x'], a[href^='javascript']", "maths": "mjx-container", "formula": "mjx-container",
}  # fmt: skip
_LOOK = """([index, texts, parts]) => {
    const output = document.querySelectorAll(".jp-Notebook .jp-Cell")[index].querySelector(".jp-Cell-outputArea");
    const verdict = ([name, ways]) => {
        const found = [...output.querySelectorAll(parts[name])];
        if ((window.pwned ?? []).includes(name)) return "EXECUTED";
        // pandas brings a style of its own
        if (found.some((one) => name !== "style" || one.textContent.includes("rgb(1, 2, 3)")))
            return found[0].matches("mjx-container:not(:has([href^='javascript']))") ? "maths" : "markup";
        return ways.some((way) => output.textContent.includes(way)) ? "text" : "-";
    };
    return Object.fromEntries(Object.entries(texts).map((each) => [each[0], verdict(each)]));
}"""
_CONTROLLED = """(index) => {
    const output = document.querySelectorAll(".jp-Notebook .jp-Cell")[index].querySelector(".jp-Cell-outputArea");
    return (window.pwned ?? []).includes("control") && output.querySelector("mjx-container");
}"""
_ORDER = ("EXECUTED", "markup", "maths", "text", "-")


def look_at(notebook: Open) -> dict[str, dict[str, str]]:
    """Let all texts come in from everywhere, in one notebook: what became of them, by surface and text."""
    live, redrawn = range(3, 6), range(9, 12)
    firsts = [(half, 4 * half, 4 * half + 4) for half in range(3)]
    cells = [LAB + _SETUP, _CONTROL, _ASK, *(_LIVE.format(*first) for first in firsts), _STOP, _CONTROL, "0"]
    cells += [*(_REDRAWN.format(*first[1:]) for first in firsts), *SURFACES.values(), _CONTROL]
    nb = notebook(cells)
    nb.may_fail(12 + list(SURFACES).index("traceback"))
    nb.run(0, 1)
    nb.until(f"(index) => !!({_CONTROLLED})(index)", 1)  # scripts do run here, and formulas are typeset
    nb.run(2, *live)
    for index in live:
        BoardOnPage(nb, index).until("value", "see ")
    found = {"live board": _worst(nb, live)}
    nb.run(6)
    for index in live:
        BoardOnPage(nb, index).until_still()
    for index in (*redrawn, *range(12, len(cells))):  # one by one: what waits behind a traceback is not run
        nb.run(index)
    nb.until(f"(index) => !!({_CONTROLLED})(index)", len(cells) - 1)
    found |= {"still table": _worst(nb, live), "LLMLAB_UI=html": _worst(nb, redrawn)}
    return found | {name: _look(nb, 12 + place) for place, name in enumerate(SURFACES)}


def _look(nb: Notebook, index: int) -> dict[str, str]:
    found: dict[str, str] = nb.page.evaluate(_LOOK, [index, {name: _ways(TEXTS[name]) for name in TEXTS}, _PARTS])
    return found


def _worst(nb: Notebook, indexes: range) -> dict[str, str]:
    """The same for several cells together: the first of _ORDER."""
    looks = [_look(nb, index) for index in indexes]
    return {name: min((look[name] for look in looks), key=_ORDER.index) for name in TEXTS}


def _ways(text: str) -> list[str]:
    """A text, and as it stands in a Python literal."""
    escaped = text.replace("\\", "\\\\")
    return [text, escaped, escaped.replace("'", "\\'")]


def as_table(found: dict[str, dict[str, Any]]) -> str:
    """What became of them, a line for each surface."""
    widest = max(map(len, found))
    head = " " * widest + "".join(f"  {name:<9}" for name in TEXTS)
    lines = [
        f"{surface:<{widest}}" + "".join(f"  {each[name]:<9}" for name in TEXTS) for surface, each in found.items()
    ]
    return "\n".join([head, *lines])
