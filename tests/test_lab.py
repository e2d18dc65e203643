import asyncio
from collections.abc import Iterator

import httpx
import orjson
import pandas as pd
import pytest
import respx

import llmlab
from llmlab import core
from llmlab.clock import run_virtual
from llmlab.errors import AuthFailed, BadRequest
from llmlab.frame import COLUMNS
from llmlab.sim.faults import Faults
from llmlab.sim.physics import Physics
from llmlab.sim.transport import Simulator

KEYS = ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "AZURE_OPENAI_API_KEY", "GROQ_API_KEY")


@pytest.fixture(autouse=True)
def _no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in KEYS:
        monkeypatch.delenv(name, raising=False)


class Recorder(httpx.AsyncBaseTransport):
    """Answers every request with its own model and last message; keeps the bodies."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, object]] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        body = orjson.loads(await request.aread())
        self.bodies.append(body)
        message = {"role": "assistant", "content": f"re: {body['messages'][-1]['content']}"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return httpx.Response(200, json={"model": body["model"], "choices": [choice]})


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def lab(recorder: Recorder) -> llmlab.Lab:
    return llmlab.Lab("openai:m", api_key="k", transport=recorder)


# -- the simulated provider -------------------------------------------------------------------------------


def test_without_arguments_a_lab_works_and_needs_no_key() -> None:
    async def main() -> pd.DataFrame:
        return await llmlab.Lab().run_many(["What is tea?", "What is coffee?"])

    out = run_virtual(main)
    assert out.status.tolist() == ["ok", "ok"]
    assert out.content.str.len().min() > 10
    assert out.provider.tolist() == ["sim", "sim"]
    assert list(out.columns) == [column.name for column in COLUMNS]


def test_the_lab_says_once_that_it_simulates_and_how_to_leave(monkeypatch, capsys) -> None:
    monkeypatch.setattr(core, "_told", False)
    llmlab.Lab()
    llmlab.Lab()
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "simulated provider" in told
    assert 'Lab("openai:MODEL")' in told


def test_a_lab_with_a_real_provider_says_nothing(monkeypatch, capsys) -> None:
    monkeypatch.setattr(core, "_told", False)
    llmlab.Lab("openai:m", api_key="k")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
@pytest.mark.parametrize("stream", [False, True])
def test_mixed_faults_cost_no_row_and_every_attempt_is_counted(provider: str, stream: bool) -> None:
    simulator = Simulator(seed=3, faults=Faults.mixed(0.2))

    async def main() -> pd.DataFrame:
        lab = llmlab.Lab(f"{provider}:m", transport=simulator, seed=1)
        return await lab.run_many([f"Question {n}" for n in range(300)], stream=stream)

    out = run_virtual(main)
    assert out[out.status != "ok"][["error_type", "error"]].to_dict("records") == []
    assert out.prompt.tolist() == [f"Question {n}" for n in range(300)]
    assert out.attempts.sum() == simulator.requests
    assert out.attempts.max() > 1
    assert out.ttft_ms.notna().all() == stream


def test_the_same_seed_gives_the_same_frame() -> None:
    async def main() -> pd.DataFrame:
        simulator = Simulator(seed=3, faults=Faults.mixed(0.2))
        lab = llmlab.Lab("openai:m", transport=simulator, seed=1)
        return await lab.run_many([f"Question {n}" for n in range(100)])

    pd.testing.assert_frame_equal(run_virtual(main), run_virtual(main))


# -- run --------------------------------------------------------------------------------------------------


def test_run_gives_a_reply(lab: llmlab.Lab) -> None:
    async def main() -> llmlab.Reply:
        return await lab.run("Hello", model="big")

    reply = asyncio.run(main())
    assert (reply.content, reply.model, reply.provider) == ("re: Hello", "big", "openai")


def test_run_takes_a_conversation(lab: llmlab.Lab, recorder: Recorder) -> None:
    parts = [
        {"type": "text", "text": "See"},
        {"type": "image_url", "image_url": {"url": "https://x.test/a.png"}},
    ]
    lab.run([{"role": "system", "content": "Be brief."}, {"role": "user", "content": parts}]).result()
    assert recorder.bodies[0]["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": parts},
    ]


def test_a_failure_of_run_raises_its_error() -> None:
    transport = httpx.MockTransport(lambda _: httpx.Response(400, json={"error": {"message": "no such thing"}}))
    with pytest.raises(BadRequest, match="no such thing"):
        llmlab.Lab("openai:m", api_key="k", transport=transport).run("Hello").result()


# -- run_many ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "index",
    [
        pd.Index(["a", "b", "b"], name="key"),
        pd.MultiIndex.from_tuples([(1, "x"), (1, "y"), (2, "x")], names=["n", "c"]),
        pd.date_range("2026-01-01", periods=3, name="day"),
        pd.RangeIndex(5, 20, 5),
    ],
    ids=["duplicates", "multi", "dates", "range"],
)
def test_the_result_has_the_inputs_index(index: pd.Index, lab: llmlab.Lab) -> None:
    out = lab.run_many(pd.Series(["p", "q", "r"], index=index)).result()
    pd.testing.assert_index_equal(out.index, index)
    assert out.content.tolist() == ["re: p", "re: q", "re: r"]


def test_a_template_takes_columns_and_rows_set_their_own_parameters(lab: llmlab.Lab, recorder: Recorder) -> None:
    table = pd.DataFrame(
        {
            "review": ["good", "bad"],
            "model": ["big", None],
            "temperature": [0.5, None],
            "max_tokens": [50, None],
            "system": [None, "Be kind."],
        },
        index=["x", "y"],
    )
    out = lab.run_many(table, template="Classify: {review}", temperature=1.0).result()
    assert out.index.tolist() == ["x", "y"]
    assert out.prompt.tolist() == ["Classify: good", "Classify: bad"]
    first, second = sorted(recorder.bodies, key=lambda body: str(body["model"]))
    assert first == {
        "model": "big",
        "messages": [{"role": "user", "content": "Classify: good"}],
        "temperature": 0.5,
        "max_completion_tokens": 50,
    }
    assert second["temperature"] == 1.0
    assert second["messages"][0] == {"role": "system", "content": "Be kind."}  # type: ignore[index]


def test_nothing_is_sent_that_the_user_did_not_set(lab: llmlab.Lab, recorder: Recorder) -> None:
    lab.run_many(["p"]).result()
    assert recorder.bodies == [{"model": "m", "messages": [{"role": "user", "content": "p"}]}]


def test_the_labs_parameters_hold_unless_a_job_sets_its_own(recorder: Recorder) -> None:
    lab = llmlab.Lab("openai:m", api_key="k", transport=recorder, temperature=0.2, system="Lab", extra={"seed": 1})
    lab.run("a").result()
    lab.run("b", temperature=0, system="Job", extra={"top_p": 0.5}).result()
    assert recorder.bodies[0]["temperature"] == 0.2
    assert recorder.bodies[0]["seed"] == 1
    assert recorder.bodies[1]["temperature"] == 0
    assert recorder.bodies[1]["messages"][0]["content"] == "Job"  # type: ignore[index]
    assert recorder.bodies[1]["top_p"] == 0.5
    assert "seed" not in recorder.bodies[1]


def test_a_very_long_answer_is_streamed_so_that_no_box_on_the_way_cuts_it() -> None:
    async def main() -> pd.DataFrame:
        lab = llmlab.Lab("openai:m", transport=Simulator())
        return await lab.run_many(pd.DataFrame({"prompt": ["short", "long"], "max_tokens": [100, 30_000]}))

    assert run_virtual(main).ttft_ms.notna().tolist() == [False, True]


def test_a_generator_is_taken_lazily(lab: llmlab.Lab) -> None:
    out = lab.run_many(f"p{n}" for n in range(100)).result()
    assert out.index.equals(pd.RangeIndex(100))
    assert out.content.tolist() == [f"re: p{n}" for n in range(100)]


def test_jobs_of_one_lab_share_its_line() -> None:
    simulator = Simulator()

    async def main() -> None:
        lab = llmlab.Lab("openai:m", transport=simulator, concurrency=5)
        await asyncio.gather(*(lab.run_many([f"{job}-{n}" for n in range(20)]).wait() for job in range(4)))

    run_virtual(main)
    assert simulator.stats()["max_in_flight"] == 5


def test_concurrency_changes_while_a_job_runs() -> None:
    simulator = Simulator()

    async def main() -> None:
        lab = llmlab.Lab("openai:m", transport=simulator, concurrency=2)
        job = lab.run_many([f"p{n}" for n in range(60)])
        await asyncio.sleep(1)
        assert simulator.stats()["max_in_flight"] == 2
        lab.concurrency = 10
        await job
        assert lab.concurrency == 10

    run_virtual(main)
    assert simulator.stats()["max_in_flight"] == 10


def test_lab_last_is_the_job_started_last(lab: llmlab.Lab) -> None:
    assert not lab.last
    out = lab.run_many(["a", "b"]).result()
    assert lab.last is not None
    pd.testing.assert_frame_equal(lab.last.frame, out)


def test_a_known_price_fills_the_cost() -> None:
    async def main() -> pd.DataFrame:
        lab = llmlab.Lab("openai:m", transport=Simulator(), prices={"m": (1.0, 10.0)})
        return await lab.run_many(["a", "b"])

    out = run_virtual(main)
    expected = (out.input_tokens * 1.0 + out.output_tokens * 10.0) / 1e6
    assert out.cost_usd.tolist() == pytest.approx(expected.tolist())


# -- bad input is refused before anything is sent ---------------------------------------------------------


@pytest.fixture
def sends_nothing() -> Iterator[llmlab.Lab]:
    with respx.mock(assert_all_called=False) as router:
        transport = httpx.MockTransport(router.async_handler)
        yield llmlab.Lab("openai:m", api_key="k", transport=transport)
        assert router.calls.call_count == 0


@pytest.mark.parametrize(
    ("source", "settings", "kind", "said"),
    [
        ("one prompt", {}, TypeError, "lab.run"),
        ({"a": 1}, {}, TypeError, "lab.run"),
        (7, {}, TypeError, "Series, DataFrame, list"),
        (["a", 5], {}, TypeError, "row 1"),
        (["a", None], {}, ValueError, "row 1.*missing"),
        (pd.Series(["a", None], index=["x", "y"]), {}, ValueError, "row 'y'.*missing"),
        (pd.Series(["a", float("nan")]), {}, ValueError, "row 1.*missing"),
        ([[]], {}, ValueError, "row 0.*empty"),
        ([[{"role": "robot", "content": "x"}]], {}, ValueError, "row 0.*robot"),
        (pd.DataFrame({"review": ["a"]}), {}, ValueError, "template.*'review'"),
        (pd.DataFrame({"review": ["a"]}), {"template": "{revue}"}, ValueError, "did you mean 'review'"),
        (
            pd.DataFrame({"review": [None]}),
            {"template": "{review}"},
            ValueError,
            "row 0.*'review' is missing",
        ),
        (pd.DataFrame({"review": ["a"]}), {"template": "no field"}, ValueError, "uses no column"),
        (["a"], {"temperature": 3}, ValueError, "temperature must be between 0 and 2"),
        (["a"], {"temperature": "hot"}, TypeError, "temperature must be a number"),
        (["a"], {"max_tokens": 0}, ValueError, "max_tokens must be at least 1"),
        (["a"], {"model": 5}, TypeError, "model must be"),
        (["a"], {"system": 5}, TypeError, "system must be"),
    ],
)
def test_bad_input_is_refused_in_words(source, settings, kind, said, sends_nothing: llmlab.Lab) -> None:
    with pytest.raises(kind, match=f"(?s){said}"):
        sends_nothing.run_many(source, **settings)


@pytest.mark.parametrize(
    ("arguments", "kind", "said"),
    [
        ({"model": "gpt"}, ValueError, "write 'provider:model', as in 'openai:gpt'"),
        ({"model": "opnai:m"}, ValueError, "unknown provider 'opnai'; did you mean 'openai'"),
        ({"model": "openai:"}, ValueError, "names no model"),
        ({"model": 5}, TypeError, "model must be a str"),
        (
            {"model": "openai:m"},
            ValueError,
            "openai needs a key: set the environment variable OPENAI_API_KEY",
        ),
        ({"model": "anthropic:m"}, ValueError, "ANTHROPIC_API_KEY"),
        ({"model": "azure:m", "api_key": "k"}, ValueError, "base_url"),
        ({"model": "openai:m", "base_url": "localhost:8000"}, ValueError, "http"),
        ({"model": "openai:m", "api_key": "kö"}, ValueError, "api_key holds characters"),
        ({"model": "openai:m", "api_key": "  "}, ValueError, "needs a key"),
        ({"model": "ollama:m", "base_url": "http://h:99999/v1"}, ValueError, "port 99999"),
        ({"model": "openai:m", "base_url": "http://u:p@h/v1", "api_key": "k"}, ValueError, "only one of them"),
        ({"seed": [1]}, TypeError, "seed must be a whole number"),
        ({"transport": object()}, TypeError, "httpx.AsyncBaseTransport"),
        ({"concurrency": 0}, ValueError, "concurrency must be at least 1"),
        ({"concurrency": 2.5}, TypeError, "concurrency must be a whole number"),
        ({"strategy": "default"}, TypeError, "Strategy"),
        ({"loop": "there"}, ValueError, "'caller' or 'thread'"),
        ({"temperature": -1}, ValueError, "temperature"),
        ({"prices": {"m": 5}}, TypeError, r"prices\['m'\]"),
    ],
)
def test_a_lab_that_cannot_work_is_refused_in_words(arguments, kind, said) -> None:
    with pytest.raises(kind, match=said):
        llmlab.Lab(**arguments)


def test_a_local_server_needs_no_key(recorder: Recorder) -> None:
    assert "vllm:m" in repr(llmlab.Lab("vllm:m"))
    llmlab.Lab("openai:m", base_url="http://127.0.0.1:8000/v1", transport=recorder).run("x").result()


def test_the_key_comes_from_the_environment(monkeypatch) -> None:
    seen = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers["authorization"])
        return httpx.Response(401, json={"error": {"message": "no", "code": "invalid_api_key"}})

    monkeypatch.setenv("OPENAI_API_KEY", " sk-env \n")
    with pytest.raises(AuthFailed, match="check OPENAI_API_KEY or api_key="):
        llmlab.Lab("openai:m", transport=httpx.MockTransport(handler)).run("x").result()
    assert seen == ["Bearer sk-env"]


def test_a_key_is_in_no_repr(recorder: Recorder) -> None:
    lab = llmlab.Lab("openai:m", api_key="sk-very-secret", transport=recorder)
    job = lab.run_many(["a"])
    out = job.result()
    assert "sk-very-secret" not in repr(lab) + repr(vars(lab)) + repr(job) + repr(vars(job)) + out.to_csv()


# -- where a lab lives ------------------------------------------------------------------------------------


def test_a_job_has_a_result_without_a_loop_and_the_lab_can_be_used_again(lab: llmlab.Lab) -> None:
    assert lab.run("a").result().content == "re: a"
    assert lab.run_many(["b"]).result().content.tolist() == ["re: b"]


def test_a_lab_survives_one_asyncio_run_after_another(lab: llmlab.Lab) -> None:
    async def main() -> str:
        return (await lab.run("a")).content

    assert [asyncio.run(main()), asyncio.run(main()), lab.run("b").result().content] == [
        "re: a",
        "re: a",
        "re: b",
    ]


def test_a_result_inside_a_running_loop_comes_from_a_thread(lab: llmlab.Lab) -> None:
    async def main() -> str:
        return lab.run("a").result().content

    assert asyncio.run(main()) == "re: a"


def test_a_lab_on_a_thread_answers_awaits_and_results_from_anywhere(recorder: Recorder) -> None:
    lab = llmlab.Lab("openai:m", api_key="k", transport=recorder, loop="thread")

    async def main() -> list[str]:
        job = lab.run_many(["a", "b"])
        frame = await job
        return [*frame.content, lab.run("c").result().content]

    assert asyncio.run(main()) == ["re: a", "re: b", "re: c"]
    assert lab.run("d").result().content == "re: d"


def test_a_job_on_a_thread_goes_on_while_this_thread_computes() -> None:
    done = []

    class Slow(Recorder):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            await asyncio.sleep(0.01)
            done.append(1)
            return await super().handle_async_request(request)

    lab = llmlab.Lab("openai:m", api_key="k", transport=Slow(), loop="thread")
    job = lab.run_many(["a", "b"])
    deadline = 50_000_000
    while len(done) < 2 and deadline:  # computing, never giving the loop of this thread a turn
        deadline -= 1
    assert len(done) == 2
    assert job.result().status.tolist() == ["ok", "ok"]


def test_a_cancelled_job_on_a_thread_stops() -> None:
    class Never(Recorder):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            await asyncio.Event().wait()
            return await super().handle_async_request(request)

    lab = llmlab.Lab("openai:m", api_key="k", transport=Never(), loop="thread")
    job = lab.run_many(["a", "b"])
    job.cancel()
    assert job.result().status.tolist() == ["cancelled", "cancelled"]


def test_a_password_or_key_in_the_base_url_is_not_shown() -> None:
    shown = repr(llmlab.Lab("ollama:m", base_url="http://joe:hunter2@host:11434/v1?key=SECRET"))
    assert "host:11434/v1" in shown
    assert "hunter2" not in shown
    assert "SECRET" not in shown


def test_concurrency_set_between_two_results_is_read_back(lab: llmlab.Lab) -> None:
    lab.run("a").result()
    lab.concurrency = 4
    assert lab.concurrency == 4


@pytest.mark.parametrize("where", ["caller", "thread"])
def test_a_lab_closes_on_the_loop_it_lives_on(where) -> None:
    async def main() -> None:
        once = llmlab.Strategy.bare()
        async with llmlab.Lab("vllm:m", base_url="http://127.0.0.1:9/v1", loop=where, strategy=once) as lab:
            out = await lab.run_many(["a"], progress=False)
            assert out.status.tolist() == ["error"]

    asyncio.run(main())


@pytest.mark.parametrize("bad", [None, 5, {"role": "user", "content": "x"}, b"x"])
def test_what_is_no_prompt_is_refused_by_run_in_words(bad, lab: llmlab.Lab) -> None:
    with pytest.raises((TypeError, ValueError), match=r"a (prompt|message) is"):
        lab.run(bad)


def test_pausing_one_run_leaves_the_others_of_its_priority_alone() -> None:
    async def main() -> None:
        transport = Simulator(physics=Physics.instant(ttft=1.0))
        lab = llmlab.Lab("openai:m", transport=transport, concurrency=1, api_key="k")
        first, second, third = (lab.run(f"p{n}") for n in range(3))
        await asyncio.sleep(0.5)
        second.pause()
        await first
        await third
        assert (second.done, second.look().state, third.look().state) == (False, "paused", "done")
        second.resume()
        await second

    run_virtual(main)
