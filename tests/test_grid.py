import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmlab.clock import run_virtual
from llmlab.errors import RateLimited, ServerError, StreamTruncated
from llmlab.events import Admitted, Bus, Delta, Event, Finished, Rerouted, Retrying
from llmlab.grid import Grid, Pane, as_text, clean, figures, headline
from llmlab.pieces import By
from llmlab.types import Outcome, Prompt, Reply, Usage

ASKED = Prompt.of("p")


def answered(content: str, **fields: Any) -> Finished:
    return Finished(Outcome(0, ASKED, "ok", Reply(content, fields.pop("finish", "stop"), "test", "m", **fields), None))


def failed(error: BaseException) -> Finished:
    return Finished(Outcome(0, ASKED, "error", None, error))


def stopped() -> Finished:
    return Finished(Outcome(0, ASKED, "cancelled", None, asyncio.CancelledError("why")))


def played(*steps: Event | float, by: By = "piece") -> Pane:
    """The pane of a grid that heard these events; a number is seconds that pass."""

    async def main() -> Pane:
        grid, bus = Grid(["t"], by), Bus()
        grid.listen(bus)
        for step in steps:
            if isinstance(step, float):
                await asyncio.sleep(step)
            else:
                bus.emit(step)
        return grid.panes[0]

    return run_virtual(main)


def said(*texts: str, every: float = 0.02) -> list[Event | float]:
    """Pieces that come evenly."""
    return [step for text in texts for step in (Delta(0, text), every)]


# -- text -------------------------------------------------------------------------------------------------


def test_a_pane_waits_then_streams_then_is_done() -> None:
    assert played().state == "waiting"
    assert played(Admitted(0, 0.0, 0.0)).state == "waiting"
    streaming = played(Admitted(0, 0.0, 0.0), *said("One", " two"))
    assert (streaming.state, streaming.text, streaming.over) == ("streaming", "One two", False)
    done = played(*said("One", " two"), answered("One two"))
    assert (done.state, done.text, done.over) == ("done", "One two", True)


def test_panes_do_not_mix() -> None:
    async def main() -> list[str]:
        grid, bus = Grid(["a", "b"]), Bus()
        grid.listen(bus)
        for index, text in ((0, "x"), (1, "1"), (0, "y"), (1, "2")):
            bus.emit(Delta(index, text))
        return [pane.text for pane in grid.panes]

    assert run_virtual(main) == ["xy", "12"]


def test_an_answer_without_pieces_is_shown_whole() -> None:
    assert played(answered("from the cache")).text == "from the cache"


def test_text_that_came_with_the_end_only_is_added() -> None:
    pane = played(*said("One"), answered("One two"))
    assert (pane.text, pane.take) == ("One two", 0)


def test_an_answer_that_is_another_than_what_was_shown_replaces_it() -> None:
    pane = played(*said("One"), answered("Uno dos"))
    assert (pane.text, pane.take) == ("Uno dos", 1)


def test_a_failure_keeps_the_text_and_says_why() -> None:
    pane = played(*said("One"), failed(StreamTruncated("cut off", partial="One")))
    assert (pane.state, pane.text, pane.error) == ("error", "One", "StreamTruncated: cut off")


def test_a_stopped_pane_keeps_its_text_and_has_no_error() -> None:
    pane = played(*said("One"), stopped())
    assert (pane.state, pane.text, pane.error, pane.over) == ("stopped", "One", "", True)


def test_a_pane_that_is_stopped_while_it_backs_off_retries_nothing() -> None:
    assert played(Retrying(0, 1, 9.0, ServerError("boom")), stopped()).note == ""


def test_a_retry_clears_the_pane_and_says_so_until_it_is_sent() -> None:
    again = Retrying(0, 1, 1.25, ServerError("boom"))
    pane = played(Admitted(0, 0.0, 0.0), *said("Half", " of"), again)
    assert (pane.state, pane.text, pane.take) == ("waiting", "", 1)
    assert pane.note == "ServerError, retrying in 1.2 s"
    assert pane.ttft_ms is None
    assert pane.rate is None
    assert played(again, Admitted(0, 0.0, 0.0)).note == ""


def test_a_retry_before_any_text_discards_nothing() -> None:
    assert played(Admitted(0, 0.0, 0.0), Retrying(0, 1, 1.0, RateLimited("slow"))).take == 0


def test_another_target_clears_the_pane_and_is_named() -> None:
    pane = played(*said("Half"), Rerouted(0, ServerError("boom"), "openai:b"))
    assert (pane.text, pane.note) == ("", "ServerError, going on to openai:b")


def test_reasoning_is_said_until_the_first_text() -> None:
    assert played(Delta(0, "")).note == "thinking"
    pane = played(Delta(0, ""), Delta(0, "x"), Delta(0, ""))
    assert (pane.state, pane.note, pane.text) == ("streaming", "", "x")


def test_by_sentence_shows_whole_sentences_and_the_rest_at_the_end() -> None:
    pieces = said("One. ", "Two", ". Thr", "ee")
    assert played(*pieces, by="sentence").text == "One. Two. "
    assert played(*pieces, answered("One. Two. Three"), by="sentence").text == "One. Two. Three"
    assert played(*pieces, stopped(), by="sentence").text == "One. Two. Three"


def test_what_a_failed_attempt_held_back_is_not_shown_with_the_next() -> None:
    again = Retrying(0, 1, 1.0, ServerError("boom"))
    assert played(*said("Half a"), again, *said("One. ", "Two"), stopped(), by="sentence").text == "One. Two"


@pytest.mark.parametrize("by", ["word", 0, True])
def test_another_way_to_cut_is_refused_at_once(by: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="by must be"):
        Grid(["t"], by)


# -- figures ----------------------------------------------------------------------------------------------


def test_ttft_counts_from_sending_not_from_standing_in_line() -> None:
    pane = played(5.0, Admitted(0, 5.0, 5.0), 0.25, Delta(0, "x"))
    assert pane.ttft_ms == pytest.approx(250.0, abs=0.1)


def test_a_hedges_second_request_does_not_restart_the_clock() -> None:
    pane = played(Admitted(0, 0.0, 0.0), 1.0, Admitted(0, 1.0, 0.0), 0.5, Delta(0, "x"))
    assert pane.ttft_ms == pytest.approx(1500.0, abs=0.1)


def test_ttft_of_a_retry_is_the_retrys_own() -> None:
    steps = (Admitted(0, 0.0, 0.0), 9.0, Retrying(0, 1, 1.0, ServerError("boom")), 1.0, Admitted(0, 10.0, 0.0))
    assert played(*steps, 0.1, Delta(0, "x")).ttft_ms == pytest.approx(100.0, abs=0.1)


def test_the_speed_is_pieces_per_second_after_the_first() -> None:
    pieces = said(*["x"] * 11, every=0.05)
    assert played(Admitted(0, 0.0, 0.0), 3.0, *pieces).rate == pytest.approx(20.0, rel=0.01)


def test_pieces_that_come_at_once_have_no_speed() -> None:
    assert played(*said("a", "b", "c", every=0.0)).rate is None


def test_one_token_has_no_speed() -> None:
    assert played(answered("x", usage=Usage(output_tokens=1), latency_s=2.5, ttft_s=0.5)).rate is None


def test_at_the_end_the_speed_is_the_providers_own_count_without_reasoning() -> None:
    usage = Usage(output_tokens=151, reasoning_tokens=50)
    pane = played(*said("a", "b"), answered("ab", usage=usage, latency_s=2.5, ttft_s=0.5))
    assert (pane.rate, pane.tokens, pane.ttft_ms) == (50.0, 151, 500.0)


def test_without_the_providers_count_the_speed_of_the_pieces_stays() -> None:
    pieces = said(*["x"] * 11, every=0.05)
    assert played(*pieces, answered("x" * 11, ttft_s=0.1)).rate == pytest.approx(20.0, rel=0.01)


def test_an_answer_from_the_cache_has_no_time_to_first_token() -> None:
    pane = played(Admitted(0, 0.0, 0.0), Delta(0, "x"), answered("x", cache_hit=True))
    assert (pane.ttft_ms, pane.note) == (None, "from the cache")


def test_an_answer_that_was_cut_off_says_so() -> None:
    assert played(answered("x", finish="length")).note == "finish_reason: length"


def test_figures_are_said_in_words_and_only_those_that_are_known() -> None:
    assert figures(Pane("t")) == ""
    assert (
        figures(Pane("t", ttft_ms=153.4, rate=49.6, tokens=1200, note="n")) == "TTFT 153 ms, 50 tok/s, 1,200 tokens, n"
    )
    assert figures(Pane("t", rate=3.44)) == "3.4 tok/s"


def test_counts_are_by_state() -> None:
    grid = Grid(["a", "b", "c"])
    grid.panes[1].state = "error"
    assert grid.counts == {"waiting": 2, "error": 1}


# -- what is read of it -----------------------------------------------------------------------------------


@given(st.lists(st.one_of(st.text(min_size=1), st.none())))
def test_news_joined_are_the_text_however_often_they_are_read(steps: list[str | None]) -> None:
    """None: somebody reads."""
    pane, read = Pane("t"), ""
    for step in steps:
        if step is None:
            read += pane.news()
        else:
            pane.hear(0.0, [step])
    assert read + pane.news() == pane.text == "".join(step or "" for step in steps)
    assert pane.news() == ""


def test_news_after_clearing_begin_anew() -> None:
    pane = Pane("t")
    pane.hear(0.0, ["old"])
    assert pane.news() == "old"
    pane.begin_anew("retrying")
    pane.hear(0.0, ["new"])
    assert pane.news() == "new"


def test_a_prompts_first_words_are_its_title() -> None:
    assert headline("  What\n is\tit? ") == "What is it?"
    assert headline("x" * 60) == "x" * 60
    long = headline("word " * 1_000_000)
    assert len(long) <= 60
    assert long.endswith("word…")


def test_plain_text_has_a_line_about_the_pane_its_text_and_its_error() -> None:
    pane = played(*said("One\ntwo"), failed(ServerError("boom")))
    assert as_text(pane) == "t: error\nOne\ntwo\nServerError: boom"


@given(st.text(alphabet=st.characters(), max_size=20))
def test_clean_text_can_be_sent_is_as_long_and_whole_text_is_left_alone(text: str) -> None:
    sent = clean(text)
    assert len(sent.encode("utf-16-le")) == len(text.encode("utf-16-le", "surrogatepass"))
    if not any("\ud800" <= char <= "\udfff" for char in text):
        assert sent == text


def test_halves_of_a_pair_are_joined_and_lone_ones_replaced() -> None:
    assert clean("\ud83d\ude00 \ud83d!") == "\U0001f600 \ufffd!"


def test_a_half_in_any_words_of_a_head_is_replaced() -> None:
    pane = played(failed(ServerError("bad \ud83d")))
    pane.note = "\ude00"
    assert str(pane.head()).encode()
