# ruff: noqa: RUF001  the letters of many languages are the point
import time
import unicodedata
from collections.abc import Iterable
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llmlab.pieces import By, Cutter, cutter


def pieces(text: str, by: By = "sentence", cuts: Iterable[int] = ()) -> list[str]:
    """What a cutter makes of a text that is fed in the parts between `cuts`."""
    places = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    cut = cutter(by)
    out = [piece for begin, end in pairwise(places) for piece in cut.feed(text[begin:end])]
    return out + cut.flush()


def given_out(text: str) -> list[str]:
    """What is given out before the text's end is known."""
    return cutter("sentence").feed(text)


def cut_as_marked(text: str) -> bool:
    """Whether a text is cut where it has a ¦, in one feed and by single characters."""
    plain = text.replace("¦", "")
    return pieces(plain) == text.split("¦") == pieces(plain, cuts=range(len(plain)))


# -- whatever the text and the feeds ----------------------------------------------------------------------

FRAGMENTS = [
    "One", "one", "It ", ". ", "! ", ".\n", ".", ". The ", "!", "?", "…", "。", "．", "...", '"', "'", ")", "”", "“",
    "»", "«", "」", "(", "[", "[1]", "*", "**", "_", "—", ",", " ", "  ", "\n", "\r\n", "\n\n", "\t", "\u00a0",
    "\u200d", "\u0301", "🎉", "\ud83d", "\ude00", "🇩", "¹", ">", "> ", "- ", "* ", "1. ", "12", "3", "a) ", "#", "# ",
    "| ", "```", "````\n", "```\n", "~~~", "`", "~", "`" * 17, "The", "the", "Oktober", "U.S. ", "U.S", "etc. ",
    "Dr. ", "No. ", "e.g", "J", "A", "漢", "Ab" * 9, "x",
]  # fmt: skip
TEXTS = st.lists(st.sampled_from(FRAGMENTS) | st.characters(max_codepoint=0xFFFF), max_size=30).map("".join)
TEXTS |= st.lists(st.sampled_from(FRAGMENTS), max_size=30).map("".join)
CUTS = st.lists(st.integers(0, 60), max_size=12)
BYS = st.sampled_from(["piece", "sentence"]) | st.integers(1, 12)


@given(TEXTS, CUTS, BYS)
def test_the_pieces_joined_are_the_text_and_none_is_empty(text: str, cuts: list[int], by: By) -> None:
    found = pieces(text, by, cuts)
    assert "".join(found) == text
    assert "" not in found


@given(TEXTS, CUTS, st.just("sentence") | st.integers(1, 12))
@example("Er kam am 3. Oktober. Dann nicht.", [12, 13, 15], "sentence")
def test_where_a_text_is_cut_does_not_depend_on_how_it_is_fed(text: str, cuts: list[int], by: By) -> None:
    assert pieces(text, by, cuts) == pieces(text, by) == pieces(text, by, range(len(text)))


@given(TEXTS, TEXTS)
def test_what_was_given_out_stays_whatever_comes_after(text: str, more: str) -> None:
    early = given_out(text)
    assert given_out(text + more)[: len(early)] == early


@given(TEXTS)
def test_a_sentence_begins_with_a_letter_or_at_its_line(text: str) -> None:
    for before, piece in pairwise(pieces(text)):
        assert before.endswith("\n") or not piece[0].isspace()
        assert piece.strip()


@given(TEXTS, BYS)
@example("One. Two\nthree. Four", "sentence")
def test_after_a_flush_a_new_text_begins(text: str, by: By) -> None:
    cut = cutter(by)
    cut.feed("1. A list\n```\nwith code. And")
    cut.flush()
    assert cut.feed(text) + cut.flush() == pieces(text, by)
    assert cut.flush() == []


# -- sentences --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "One is here. ¦Two is there! ¦Is it? ¦It is… ¦Yes.",
        'He said "Stop." ¦Then he left. ¦(He did.) ¦“Really?” ¦She nodded.',
        "**Bold.** ¦**Next** one. ¦*Hi!* ¦_You._ ¦(She [it was she.]) ¦End",
        "What?! ¦No!!! ¦So... ¦Then. . . ¦Done",
        "It ended.  \t ¦Then.\u00a0¦Next.\u200f ¦Now. ¦\u200fNow",
        "Done. ¦5 people left. ¦“Yes.” ¦— Who? ¦'Me.' ¦¿Tú? ¦¡Sí! ¦[1] says so. ¦#tag",
        "It is so.[1] ¦So it is.[2][^3] ¦It is.¹ ¦And",
        "Great! ¦🎉 Good.🎉 ¦Nice.👍🏽 ¦Go.❤\ufe0f ¦`It.` ¦Go",
        "She is 25. ¦He is 1980. ¦In 2023. ¦August is 12. ¦5 are 1. ¦Pi is 3.14. ¦It is v1.2. ¦So",
        "It is art. ¦Then no. ¦We saw the sun. ¦He sat. ¦It was 10% of $5. ¦Then",
        "I can't. ¦I don't. ¦Open /a. ¦Mail me@b. ¦Then",
    ],
)
def test_a_sentence_ends_where_the_next_one_may_begin(text: str) -> None:
    assert cut_as_marked(text)


@pytest.mark.parametrize(
    "text",
    [
        "It is 3.14 or v1.2 at www.example.org or https://a.org/b.c?d=1!e now",
        "Fruit, approx. Ten, e.g. Apples, i.e. This one, cf. The book, vs. The rest",
        "See Dr. No and Prof. The and Mrs. It and St. In",
        "Under U.S. law and the U.S. Army, in D.C. Monday, by U.N. 101",
        "J. R. R. Tolkien and J. A. Smith and J.-P. Sartre and 'C. S. Lewis",
        "Apples etc. and so on, pears etc. Plums, Smith Jr. Miller, et al. 2020",
        "At 5 a.m. sharp and 9 p.m. Monday",
        "See No. 5 and nos. 3, art. 7, vol. 2, Fig. 3, Figs. A, Eq. (3), fig. 3",
        "Stop! he said, wait… what? no. x ... y, abbrev. word",
        'So "Stop!" he said, (what?) he asked, "No." - he said, "Yes!", she said',
        "Go! \"it\" he, no. 'he' he, abbrev. (it) he, yes. *it* he, no. ¿qué! \u200fno",
        "Hello. , and Yes! = no, 5! + 3, is it? ; a.b",
        "Is (?) This and (!) That and [...] The",
        "am 3. Oktober, im 19. Jahrhundert, der 1. Mai",
        "z. B. Paris, z.B. Das, d. h. Menschen, Nr. Der, vgl. Der, bzw. Die, usw. Blau",
        "M. Dupont, Mme. La, p. ex. Paris, env. La, etc. Paris",
        "el Sr. García, la Sra. La, p.ej. Los, EE.UU. desde, Ud. Puede, pág. 3",
        "quoi ? » dit-il ! ” non",
        "Hello ( yes. ) no",
    ],
)
def test_what_only_looks_like_an_end_is_none(text: str) -> None:
    assert pieces(text) == [text]


@pytest.mark.parametrize(
    "text",
    [
        "In the U.S. ¦The law. ¦At 9 p.m. ¦We left. ¦Apple Inc. ¦“It grew.” ¦So do I. ¦They left",
        "Vitamin C. ¦It helps. ¦Apples etc. ¦Then he left. ¦No. ¦I won't. ¦No. 5 is it",
        "Blumen usw. ¦Dann kam er. ¦Er war 25. ¦Dann kam er. ¦Er war 8. ¦»So.« ¦Ja",
        "Pommes, etc. ¦Il partit. ¦Frutas, etc. ¦El fin",
        "etc... ¦Then. ¦Who is Dr.? ¦Me. ¦Dr.. ¦No. ¦U.S.! ¦Yes",
        "Under (U.S.) Army (etc.) ¦The end",
    ],
)
def test_an_abbreviation_ends_a_sentence_before_a_word_that_begins_one(text: str) -> None:
    assert cut_as_marked(text)


@pytest.mark.parametrize(
    "text",
    [
        "Steps: 1. Open it. ¦2. Close it. ¦3.1. The lock. ¦IV. Rust. ¦B. The wood. ¦(C. It",
        "Choose; (1. This or: 12. That",
        "**1. Foo** is. ¦“2. Bar” is",
    ],
)
def test_a_number_that_begins_a_sentence_does_not_end_it(text: str) -> None:
    assert cut_as_marked(text)


@pytest.mark.parametrize(
    "text",
    [
        "你好。¦世界！¦真的？？！¦是‼¦好｡ ¦完",
        "「はい。」¦と。¦『え？』）¦“再见。”¦“好。”¦【注。】 ¦完",
        "３．１４と１．項目です．¦次。😊¦完。**¦Ok",
        "A.。¦b？。¦c。.¦d。¦●e",
        "यह है।¦वह है॥ ¦ما هذا؟ ¦هذا",
        "안녕. ¦그래. ¦გამარჯობა. ¦კარგად",
        "（？）没有（！）。¦有",
    ],
)
def test_a_stop_that_needs_no_space_ends_at_once_with_its_quotes(text: str) -> None:
    assert cut_as_marked(text)


@pytest.mark.parametrize(
    "text",
    [
        "« Quoi ? » ¦Il partit. ¦« Non ! ». ¦« Si. » dit-il. ¦«Oui.» ¦Fin",
        "„Hallo.“ ¦Er ging. ¦»Ja!« sagte er. ¦»Nein.« ¦Er kam",
        "”Hej.” ¦Han gick. ¦”Ja.” ¦Slut",
        "—¡Alto! —gritó. ¦—¿Quién? – dijo. ¦– Nadie",
    ],
)
def test_quotes_are_read_as_their_languages_set_them(text: str) -> None:
    assert cut_as_marked(text)


# -- lines ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "It ends.\n¦here. ¦Or\nnot? \r\n¦or (so.)\n\n¦  (a)",
        "no stop\n\n¦Next\n \t\n¦dr.\n\n¦no\r\n\r\n¦end",
        "See Dr.\nNo and e.g.\nThis and No.\n5",
        "In the U.S.\n¦Monday and U.S.\nlaw, he is 25.\n¦Oktober",
        "4.\n¦Then (it)\nis 4.\n¦Then",
        "Roses are red\nViolets are blue",
        "\n\n  Hello. ¦World\n\n",
        " \n\n- a\n¦- b",
    ],
)
def test_a_line_end_after_a_stop_and_a_blank_line_end_a_sentence(text: str) -> None:
    assert cut_as_marked(text)


@pytest.mark.parametrize(
    "text",
    [
        "Two things:\n¦- one thing\n¦* two. ¦Three\n¦  + 3\n¦• four\n¦– five\n\n¦six",
        "So\n¦1. one\n¦2) two\n¦a) three\n¦123. The\n¦- 1. The\n¦- [ ] todo",
        "- an item\n¦  Two",
        "- an item that\n  goes on\n  and on\n¦Then a line\nand another",
        "So\n¦# 1. Title\n¦lower\n¦###### Sub. ¦Title\n¦Text\n####### none\n#none",
        "So\n¦| a | b |\n¦|---|---|\n¦| c | d |\n¦then",
        "> It is.\n¦> so\n> it goes\n>\n¦> - a\n¦> - b\n¦> # T\n¦> end",
        "in\n1986. ¦That was\n-5 or\n1.5 or\n1234. ¦So\n¦- ",
        "# T\n¦- a\nb\nc",
        "- etc.\n¦- Dr.\n¦Then\nand",
    ],
)
def test_items_headings_and_rows_have_their_own_lines(text: str) -> None:
    assert cut_as_marked(text)


@pytest.mark.parametrize(
    "text",
    [
        "So\n¦```python\n¦def f(x):\n¦    return x. Foo\n\n¦x = 'A! B'\n¦```\n¦after. ¦Then\nend",
        "````\n¦```\n¦# A. B\n¦```\n¦`````  \n¦Then",
        "~~~ `x`\n¦A. B\n¦```\n¦~~~ \r\n¦Then. ¦So",
        "  ```\n¦  A. B\n¦  ```\n¦- a",
        "> ```\n¦> A. B\n¦> ```\n¦> So. ¦It",
        "```\n¦```x. A\n¦A. B\n¦``\n¦`a. A",
        "```in``` line. ¦Then ``` so. ¦Then\n``x``. ¦So",
        "- a\n¦```\n¦- b. C\n¦```\n¦c\nd",
    ],
)
def test_code_in_fences_is_cut_by_its_lines(text: str) -> None:
    assert cut_as_marked(text)


# -- when -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "settling"),
    [
        ("One. ", "T"),
        ('"One." ', "4"),
        ("One.\n", "o"),
        ("One\n\n", "o"),
        ("你好。", "世"),
        ("你好。」", "世"),
        ("One.\n\n", "-"),
        ("One\n- a\n", "É"),
        ("# One\n", "t"),
        ("```\n", "x"),
        ("One.[1] ", "T"),
        ("One. ", "`"),
    ],
)
def test_a_sentence_is_given_out_with_the_character_that_settles_it(text: str, settling: str) -> None:
    before = given_out(text)
    assert "".join(before) != text
    assert "".join(given_out(text + settling)) == text


@pytest.mark.parametrize(("text", "rest"), [("It is the U.S. ", "The "), ("Es war am 3. ", "Okt,"), ("One\n", "- ")])
def test_where_one_character_does_not_settle_it_the_word_does(text: str, rest: str) -> None:
    assert given_out(text + rest[:-1]) == []
    assert given_out(text + rest) == ([] if "Okt" in rest else [text])


# -- lengths ----------------------------------------------------------------------------------------------


def test_by_a_number_each_piece_has_so_many_characters_and_the_last_one_the_rest() -> None:
    assert pieces("abcdefgh", 3) == ["abc", "def", "gh"]
    assert pieces("abcdef", 3, [1, 2, 5]) == ["abc", "def"]
    assert pieces("ab", 3) == ["ab"]
    assert pieces("abc", 1) == ["a", "b", "c"]


@pytest.mark.parametrize(
    "text",
    ["e\u0301", "e\u0301\u0327", "\r\n", "\ud83d\ude00", "👍🏽", "👩\u200d🚀", "🇩🇪", "❤\ufe0f", "1\ufe0f\u20e3", "कि",
     "🏴\U000e0067\U000e007f"],
)  # fmt: skip
def test_what_is_seen_as_one_character_stays_whole(text: str) -> None:
    assert pieces(f"ab{text}cd", 3) == [f"ab{text}", "cd"]
    assert pieces(f"ab{text}cd", 3, [1, 2, 3, 3, 4, 4, 5, 5, 6]) == [f"ab{text}", "cd"]


def may_part(before: str, after: str) -> bool:
    halves, flags = "\ud800" <= before <= "\udbff" and "\udc00" <= after <= "\udfff", {before, after} <= {"🇩", "🇪"}
    return not (
        unicodedata.category(after)[0] == "M"
        or "\u200d" in (before, after)
        or halves
        or flags
        or before + after == "\r\n"
    )


@given(TEXTS, st.integers(1, 12))
def test_a_piece_ends_at_the_first_place_where_it_may(text: str, least: int) -> None:
    found = pieces(text, least)
    places = [at for piece in found for at in range(least, len(piece)) if may_part(piece[at - 1], piece[at])]
    assert places == []
    assert all(len(piece) >= least and may_part(piece[-1], after[0]) for piece, after in pairwise(found))


def test_a_piece_is_given_out_with_the_next_character() -> None:
    cut = cutter(3)
    assert [cut.feed(each) for each in ("ab", "c", "d", "", "ef", "g")] == [[], [], ["abc"], [], [], ["def"]]


def test_by_piece_what_comes_goes_out_unchanged() -> None:
    cut = cutter()
    assert [cut.feed(each) for each in ("A. B", "", " c")] == [["A. B"], [], [" c"]]
    assert cut.flush() == []


# -- work -------------------------------------------------------------------------------------------------


def seconds_after(text: str, by: By, more: str) -> float:
    """CPU seconds for some more characters, one at a time, after a text; the best of five, as others compute too."""
    cut = cutter(by)
    cut.feed(text)
    return min(_seconds(cut, more) for _ in range(5))


def _seconds(cut: Cutter, text: str) -> float:
    began = time.process_time()
    for letter in text:
        cut.feed(letter)
    return time.process_time() - began


@pytest.mark.parametrize(
    ("by", "begin", "unit", "size"),
    [("sentence", "", unit, 300_000) for unit in ("A. ", ".", " ", "#", "`", "\n>", "。")]
    + [("sentence", "", "word ", 3_000_000), ("sentence", "```\n", "a", 3_000_000), ("sentence", "```\n", "`", 300_000)]
    + [("sentence", "So the U.S. ", "A", 300_000), ("sentence", "So. ", "(", 300_000)]
    + [(10**9, "", "a", 3_000_000), (3, "", "\u0301", 300_000)],
)  # fmt: skip
def test_a_character_is_no_more_work_after_a_long_text(by: By, begin: str, unit: str, size: int) -> None:
    short, long = ((begin + unit * length)[:length] for length in (300, size))
    more = (unit * 200)[:200]
    assert seconds_after(long, by, more) < 10 * seconds_after(short, by, more)


def test_a_long_text_in_one_feed_is_no_more_work_than_in_many() -> None:
    text = "It is a sentence. " * 10_000
    began = time.process_time()
    assert len(pieces(text)) == 10_000
    assert time.process_time() - began < _seconds(cutter("sentence"), text)


# -- refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", [True, False, None, 2.0, b"piece", ["piece"]])
def test_what_is_neither_a_word_nor_a_whole_number_is_refused_by_type(by: object) -> None:
    with pytest.raises(TypeError, match=r'^by must be "piece", "sentence" or a whole number .* at least 1, not '):
        cutter(by)  # type: ignore[arg-type]


@pytest.mark.parametrize("by", [0, -1, "word", "", "Sentence", "3"])
def test_a_word_or_number_that_means_nothing_is_refused_by_value(by: object) -> None:
    with pytest.raises(ValueError, match=r'^by must be "piece", "sentence" or a whole number .* at least 1, not '):
        cutter(by)  # type: ignore[arg-type]
