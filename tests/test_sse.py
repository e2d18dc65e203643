import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmlab.errors import BadPayload
from llmlab.providers.sse import ServerEvent, Splitter


def split(stream: bytes, *cuts: int, limit: int = 2**20) -> list[ServerEvent]:
    splitter = Splitter(limit=limit)
    bounds = [0, *sorted(cuts), len(stream)]
    events = []
    for start, end in pairwise(bounds):
        events += splitter.feed(stream[start:end])
    return events + splitter.close()


def plodding(stream: bytes) -> list[ServerEvent]:
    """The standard's text, character by character and line by line; for whole streams only."""
    text = stream.decode(errors="replace").removeprefix("\ufeff")
    lines, line, before = [], "", ""
    for letter in text:
        if letter == "\n" and before == "\r":
            pass
        elif letter in "\r\n":
            lines.append(line)
            line = ""
        else:
            line += letter
        before = letter
    events = []
    data: list[str] = []
    name = ""
    for each in lines:
        if each == "":
            if joined := "\n".join(data):
                events.append(ServerEvent(joined, name))
            data, name = [], ""
        elif not each.startswith(":"):
            key, _, value = each.partition(":")
            value = value.removeprefix(" ")
            if key == "data":
                data.append(value)
            elif key == "event":
                name = value
    return events


FRAGMENTS = [
    b"data: ",
    b"data:",
    b"data",
    b"event: ",
    b"event",
    b"id: 7",
    b"retry: 10",
    b": ping",
    b":",
    b"\n",
    b"\r",
    b"\r\n",
    b"\n\n",
    b'{"a": 1}',
    b"[DONE]",
    b" ",
    b"x",
    "é\u2028\x85漢😀".encode(),
    b"\xff",
    b"\xe2\x82",
    b"\xef\xbb\xbf",
    b"\x00",
    b"data: hello\n\n",
]
STREAMS = st.lists(st.sampled_from(FRAGMENTS) | st.binary(max_size=4), max_size=30).map(b"".join)
CUTS = st.lists(st.integers(0, 120), max_size=20)


@given(STREAMS, CUTS)
def test_any_split_of_a_stream_gives_the_events_of_the_standard(stream: bytes, cuts: list[int]) -> None:
    whole = stream + b"\n\n"
    cuts = [min(cut, len(whole)) for cut in cuts]
    assert split(whole, *cuts) == plodding(whole)


@given(STREAMS)
def test_a_stream_byte_by_byte_gives_the_same_events(stream: bytes) -> None:
    assert split(stream, *range(len(stream))) == split(stream)


@given(STREAMS, CUTS)
def test_any_split_ends_at_the_same_event(stream: bytes, cuts: list[int]) -> None:
    assert split(stream, *(min(cut, len(stream)) for cut in cuts)) == split(stream)


@given(STREAMS, CUTS, st.integers(1, 40))
def test_any_split_meets_the_same_limit(stream: bytes, cuts: list[int], limit: int) -> None:
    def refused(*cuts: int) -> bool:
        try:
            split(stream, *cuts, limit=limit)
        except BadPayload:
            return True
        return False

    cuts = [min(cut, len(stream)) for cut in cuts]
    assert refused(*cuts) == refused()


@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n"])
def test_all_three_line_ends_are_read(end: bytes) -> None:
    stream = end.join([b"event: ping", b"data: a", b"data: b", b"", b"data: c", b"", b""])
    assert split(stream) == [ServerEvent("a\nb", "ping"), ServerEvent("c")]


def test_a_crlf_cut_in_two_is_one_line_end() -> None:
    splitter = Splitter()
    assert splitter.feed(b"data: a\r") == []
    assert splitter.feed(b"") == []
    assert splitter.feed(b"\ndata: b\r\n") == []
    assert splitter.feed(b"\r") == [ServerEvent("a\nb")]
    assert splitter.feed(b"\n") == []


def test_an_event_is_handed_out_as_soon_as_its_blank_line_is_there() -> None:
    splitter = Splitter()
    assert splitter.feed(b"data: a\n") == []
    assert splitter.feed(b"\n") == [ServerEvent("a")]
    assert splitter.feed(b"data: b\r\r") == [ServerEvent("b")]


@pytest.mark.parametrize(
    ("chunks", "data"),
    [
        ([b"data: x\ry\n\n"], ["x"]),
        ([b"data: a\n", b"data: b\n\n"], ["a\nb"]),
        ([b"data: a\n", b"data: b\n\ndata: c\n\n"], ["a\nb", "c"]),
        ([b"data: a\n\r", b"\n", b"data: b\n\n"], ["a", "b"]),
        ([b"da", b"ta: a\n\n", b"data: b\n\n"], ["a", "b"]),
        ([b": ping ", b"data: b\n\n"], []),
        ([b"data: a\nid: 1\n\n", b"data: \n\n", b"data: b\nx\n"], ["a"]),
    ],
)
def test_the_short_cut_for_plain_chunks_changes_nothing(chunks: list[bytes], data: list[str]) -> None:
    splitter = Splitter()
    assert splitter.feed(b"data: first\n\n") == [ServerEvent("first")]
    assert [event.data for chunk in chunks for event in splitter.feed(chunk)] == data


def test_one_byte_order_mark_is_dropped_and_a_second_one_kept() -> None:
    assert split(b"\xef\xbb\xbfdata: a\n\n", 1, 2) == [ServerEvent("a")]
    assert split(b"\xef\xbb\xbf\xef\xbb\xbfdata: a\n\ndata: b\n\n") == [ServerEvent("b")]


def test_separators_of_unicode_do_not_end_a_line() -> None:
    assert split("data: a\u2028b\x85c\n\n".encode()) == [ServerEvent("a\u2028b\x85c")]


def test_invalid_bytes_are_replaced() -> None:
    assert split(b"data: a\xffb\n\n") == [ServerEvent("a\ufffdb")]


@pytest.mark.parametrize(
    "stream", [b"event: ping\n\n", b"data\n\n", b"data:\n\n", b"data: \n\n", b": hi\n\n", b"id: 1\n\n"]
)
def test_an_event_without_data_is_none_and_its_name_is_forgotten(stream: bytes) -> None:
    assert split(stream + b"data: x\n\n") == [ServerEvent("x")]


def test_only_one_space_after_the_colon_is_dropped() -> None:
    assert split(b"data:a\n\ndata:  b\n\n") == [ServerEvent("a"), ServerEvent(" b")]


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
@pytest.mark.parametrize("data", ["[DONE]", '{"a": [1]}', '[{"error": 1}]'])
def test_a_whole_last_event_counts_without_its_blank_line(data: str, end: bytes) -> None:
    assert split(b"event: e\ndata: " + data.encode() + end) == [ServerEvent(data, "e")]


@pytest.mark.parametrize("data", [b'{"a": ', b"12", b"hello", b"", b"[" * 100_000])
def test_a_cut_last_event_is_dropped(data: bytes) -> None:
    assert split(b"data: " + data) == []


def test_an_event_above_the_limit_is_refused_while_it_comes() -> None:
    splitter = Splitter(limit=1000)
    splitter.feed(b"data: ")
    for _ in range(9):
        splitter.feed(b"x" * 100)
    with pytest.raises(BadPayload, match="larger than 1,000 bytes"):
        splitter.feed(b"x" * 100)


@pytest.mark.parametrize("line", [b"data: " + b"x" * 90 + b"\n", b": " + b"x" * 90 + b"\n"])
def test_the_limit_counts_all_lines_of_an_event(line: bytes) -> None:
    assert split(line * 10 + b"\n", limit=1000) == split(line * 10 + b"\n")
    with pytest.raises(BadPayload):
        split(line * 11 + b"\n", limit=1000)
    assert len(split(b"data: x\n" + line + b"\n" + (b"data: x\n" + line + b"\n") * 30, limit=1000)) == 31


def test_a_long_line_in_small_pieces_comes_out_whole() -> None:
    text = json.dumps({"text": "x" * 2**21})
    stream = f"data: {text}\n\n".encode()
    assert split(stream, *range(0, len(stream), 1024), limit=2**24) == [ServerEvent(text)]


def test_many_events_in_one_chunk_are_told_apart() -> None:
    stream = b"".join(b'data: {"i": %d}\n\n' % i for i in range(100))
    assert [event.data for event in split(stream)] == [f'{{"i": {i}}}' for i in range(100)]
