"""Buffer a streamed text: give it out as it comes, by the sentence, or by at least n characters.

A cutter only cuts: joined, its pieces are the text. Where it cuts depends on the text, not on how it was fed.
What stands before a possible end gives its kind, what comes next settles whether it is one:

    kind       stands after                  is an end before                                    at a line's end
    NONE       "Dr.", "e.g."; a plain line   nothing                                             NONE
    COUNTER    a sentence's first "2.", "B." nothing                                             SURE
    STARTER    "U.S.", "etc.", "J."          a word that often begins sentences, as "The"        OPEN
    NUMBERED   "No.", "art."                 all that OPEN is, but a digit                       NUMBERED
    ORDINAL    "3."                          all that OPEN is, but a German month and the like   SURE
    OPEN       "word." "?" "…"; a list item  all but a lower-case letter or a mark like ","      SURE
    SURE       "。"; a heading, a blank line  anything, white space between or not                SURE

In doubt there is no end: that makes a piece longer, no more. White space stays with the sentence before it, but a
line's indentation with its line; code in fences goes by lines.
"""

import re
import unicodedata
from collections.abc import Callable
from enum import IntEnum
from itertools import pairwise
from typing import Literal, Protocol, TypeAlias

By: TypeAlias = Literal["piece", "sentence"] | int
"""How to cut: as the pieces come, by the sentence, or at least so many characters at a time (1 or more)."""


class Cutter(Protocol):
    """Cuts one text, which comes bit by bit."""

    def feed(self, text: str) -> list[str]:
        """Take the text's next characters; returns the pieces that they complete, none of them empty."""

    def flush(self) -> list[str]:
        """Take the text's end; returns what is left, one piece or none. The next feed begins a new text."""


def cutter(by: By = "piece") -> Cutter:
    """Make a cutter for one text.

    Args:
        by: "piece": what comes, as it comes; "sentence": sentences, list items, headings, lines of code; a number:
            at least so many characters, and no more than keep together what is seen as one: a letter and its accents,
            CR and LF, a surrogate pair, an emoji made of several. (Hangul in single jamo and Indic conjuncts may part.)

    Raises:
        TypeError: `by` is neither text nor a whole number.
        ValueError: `by` is another word, or a number below 1.
    """
    _check(by)
    if by == "piece":
        return _AsTheyCome()
    return _Sentences() if by == "sentence" else _Lengths(by)


def _check(by: object) -> None:
    wrong = f'by must be "piece", "sentence" or a whole number of characters of at least 1, not {by!r}'
    if isinstance(by, bool) or not isinstance(by, int | str):
        raise TypeError(wrong)
    if by not in ("piece", "sentence") and (isinstance(by, str) or by < 1):
        raise ValueError(wrong)


class _AsTheyCome:
    def feed(self, text: str) -> list[str]:
        return [text] if text else []

    def flush(self) -> list[str]:
        return []


# Neighbours that are seen as one, besides a mark on its letter: joiners, skin tones, tags; flags; a pair; CR and LF.
_ONE = re.compile(
    "(?s:.[\u200d\U0001f3fb-\U0001f3ff\U000e0020-\U000e007f]|\u200d.|[\U0001f1e6-\U0001f1ff]{2}"
    "|[\ud800-\udbff][\udc00-\udfff]|\r\n)"
)


class _Lengths:
    def __init__(self, least: int) -> None:
        self._least = least
        self._parts: list[str] = []
        self._size, self._last = 0, ""

    def feed(self, text: str) -> list[str]:
        pieces: list[str] = []
        begin, at = 0, max(0, self._least - self._size)
        while at < len(text):
            before = text[at - 1] if at else self._last
            if unicodedata.category(text[at])[0] == "M" or _ONE.fullmatch(before + text[at]):
                at += 1
                continue
            pieces.append("".join((*self._parts, text[begin:at])))
            self._parts, self._size = [], 0
            begin, at = at, at + self._least
        self._parts.append(text[begin:])
        self._size += len(text) - begin
        self._last = text[-1:] or self._last
        return pieces

    def flush(self) -> list[str]:
        rest = "".join(self._parts)
        self._parts, self._size = [], 0
        return [rest] if rest else []


class _End(IntEnum):
    NONE, COUNTER, STARTER, NUMBERED, ORDINAL, OPEN, SURE = range(7)


_AT_LINE_END = {_End.COUNTER: _End.SURE, _End.STARTER: _End.OPEN, _End.ORDINAL: _End.SURE, _End.OPEN: _End.SURE}

# Abbreviations; one that is in lower case here is known in any case.
_ABBREVIATIONS = {
    _End.NONE: frozenset(str.split("""
        Mr Mrs Ms Mx Messrs Dr Prof Rev Hon Gen Col Maj Capt Lt Sgt Sen Rep Gov Pres St Mt Ft Fig Figs Eq Eqs Sec
        Ref Refs e.g i.e cf vs viz approx resp esp incl pp Hr Hrn Frl Dipl Nr Abb Bd bzw ca evtl ggf vgl sog bspw inkl
        exkl zzgl allg geb urspr z.b d.h M MM Mme Mlle Mgr Ste av env p.ex Sra Srta Dra Dña Gral Avda aprox p.ej""")),
    _End.STARTER: frozenset(str.split("""
        etc inc ltd co corp bros jr sr al est dept univ ave sec min hrs ft lb ph.d b.sc m.sc ex Jan Feb Apr Aug Sept
        Oct Nov Dec Tue Wed Thu Fri janv févr juil déc usw usf mio mrd Str Jh Jhd Chr Okt Dez Ud Uds""")),
    _End.NUMBERED: frozenset(str.split("""
        no nos art arts fig figs eq vol vols ch chap ref tab par abs kap pág págs núm cap nr""")),
}  # fmt: skip
_STARTERS = frozenset(str.split("""
    The This That These Those There Then They He She It Its We You I My His Her Our Their Your A An In On At As By For
    From With If When While Where What Why How But And Or So Yet However Although After Before Since Because Here
    Der Die Das Dies Diese Dieser Es Er Sie Wir Ich Ein Eine Im Am Auf Aus Bei Mit Nach Zu Zum Zur Für Und Aber Wenn
    Weil Als Auch Doch Dann Hier Le La Les Un Une Des Ce Cette Il Elle Ils Elles Nous Vous Je Tu Et Mais Donc En Dans
    Pour Avec Sur Si Quand El Los Las Una Este Esta Esto Él Ella Con Por Para Pero Cuando Como"""))  # fmt: skip
_COUNTED = frozenset(str.split("""
    Januar Jänner Februar März April Mai Juni Juli August September Oktober November Dezember Jan Feb Apr Aug Sept Okt
    Nov Dez Jahrhundert Jahrhunderts Jh Jhd Jahrtausend Weltkrieg Weltkriegs Klasse Kapitel Platz Etage Lebensjahr
    Geburtstag Tag Mal Auflage Bundesliga Liga Semester Quartal Halbjahr"""))  # fmt: skip

_STOPS, _AT_ONCE = ".!?…‽", "。．｡！？‼⁇⁈⁉؟۔।॥։።။។"  # noqa: RUF001
_STOP_OR_LINE = re.compile(f"[\n{_STOPS}{_AT_ONCE}]")
_QUOTES, _MARKUP, _NOTES, _GOING_ON = "\"'", "*_~", "¹²³⁴⁵⁶⁷⁸⁹⁰", ",;:=+%&/|"  # what goes on begins no sentence
_SEEN = 24  # characters before a stop that are looked at
_COUNTER = re.compile(r"[\W_]*(?:\d{1,3}(?:\.\d{1,3})*|[A-Za-z]|[IVXLC]{1,5})")
_COUNTER_WITHIN = re.compile(r"[:;]\s+\(?\d{1,2}\Z")
_TOKEN = re.compile(r"(?:^|[\s(\[{\"“”„«»*_—–-]|(?<!\w)['‘’])([^\W_.]+(?:\.[^\W_.]+)*)\Z")  # noqa: RUF001
_ACRONYM = re.compile(r"[^\W\d_]|[^\W\d_]{1,2}(?:\.[^\W\d_]{1,2})+")

# What a few more characters settle: the whole, and what may still become it. All are short, or the work would grow.
_WORD = re.compile(r"[^\W\d_]{1,16}")
_NOTE = re.compile(r"\[\^?\w{0,4}(\])?")
_FENCE = re.compile(r"`{3,16}|~{3,16}")
_ITEM = re.compile(r"(?:[-*+•‣◦–—]|\d{1,3}[.)]|[A-Za-z]\))[ \t]")  # noqa: RUF001
_OWN_LINE = re.compile(r"#{1,6}[ \t]|\|")
_MARKER_BEGUN = re.compile(r"[-*+•‣◦–—]|\d{1,3}[.)]?|[A-Za-z]\)?|#{1,6}|`{1,16}|~{1,16}")  # noqa: RUF001
_LINE_END, _INFO_END = re.compile("\n"), re.compile("[`\n]")

_WAIT = -1
_State: TypeAlias = Callable[[str, int], int]


class _Sentences:
    """A machine whose state is one of its methods: (window, index) -> next index, or _WAIT for more text.

    A method may leave the character to the next state. The window is what is not settled, a word at most, and before
    it what stops are judged by: so the work per character is bounded, and nothing depends on how the text was fed.
    """

    def __init__(self) -> None:
        self._parts: list[str] = []  # not given out yet; joined only when there is something to give
        self._cuts: list[int] = []  # found by the present feed; these, as all places, count from the text's beginning
        self._given = self._last_cut = 0
        self._window, self._at, self._offset = "", 0, 0  # the offset is the window's place
        self._state: _State = self._in_indent
        self._end = self._own = _End.NONE  # of what stands before; of the line, by its marker
        self._mark = self._line = 0  # where to cut if it is an end; where the line begins
        self._blank = True  # nothing but white space so far
        self._lead = ""  # what the text from the mark to here, all before a first word, ends in: a "quote" or "other"
        self._fence, self._code_end = "", _LINE_END

    def feed(self, text: str) -> list[str]:
        self._parts.append(text)
        window, at = self._window + text, self._at
        while at < len(window) and (after := self._state(window, at)) != _WAIT:
            at = after
        dropped = max(0, at - _SEEN)
        self._window, self._at, self._offset = window[dropped:], at - dropped, self._offset + dropped
        return self._give() if self._cuts else []

    def flush(self) -> list[str]:
        rest = "".join(self._parts)
        self.__init__()  # type: ignore[misc]
        return [rest] if rest else []

    def _give(self) -> list[str]:
        text = "".join(self._parts)
        places = [0, *(cut - self._given for cut in self._cuts)]
        self._parts, self._given, self._cuts = [text[places[-1] :]], self._last_cut, []
        return [text[begin:end] for begin, end in pairwise(places)]

    def _cut(self, place: int) -> None:
        self._end = _End.NONE
        if place > self._last_cut and not self._blank:
            self._cuts.append(place)
            self._last_cut = place
            self._own = _End.NONE if place == self._line else self._own

    def _in_text(self, window: str, at: int) -> int:
        found = _STOP_OR_LINE.search(window, at)
        if found is None:
            return len(window)
        if found[0] == "\n":
            return self._end_line(found.start())
        self._end = self._judge(window, found.start())
        self._state = self._in_text if self._end is _End.NONE else self._after_stop
        return found.end()

    def _judge(self, window: str, at: int) -> _End:
        stop, before = window[at], window[max(0, at - _SEEN) : at]
        if before.rstrip(_STOPS).endswith(("(", "[", "（")) or (stop == "．" and before[-1:].isdigit()):  # noqa: RUF001
            return _End.NONE  # an aside, as "(?)" and "[…]"; a counter or a decimal in wide digits
        if stop != ".":
            return _End.SURE if stop in _AT_ONCE else _End.OPEN
        begin = max(0, len(before) - (self._offset + at - self._last_cut))
        if _COUNTER.fullmatch(before, begin) or _COUNTER_WITHIN.search(before):
            return _End.COUNTER
        token = _TOKEN.search(before)
        return _kind(token[1]) if token else _End.OPEN

    def _after_stop(self, window: str, at: int) -> int:
        letter = window[at]
        if letter == "[" and (note := _NOTE.match(window, at)) and (note[1] or note.end() == len(window)):
            return note.end() if note[1] else _WAIT
        if letter.isspace():
            self._state, self._lead = self._in_gap, ""
            return at
        if letter in _STOPS or letter in _AT_ONCE:
            self._end = max(self._end, _End.SURE if letter in _AT_ONCE else _End.OPEN)
        elif not _closes(letter, self._end):
            self._mark = self._offset + at
            return self._settle(at, is_end=self._end is _End.SURE)
        return at + 1

    def _in_gap(self, window: str, at: int) -> int:
        """Look past white space and what may stand before the next word: quotes, brackets, dashes, markup."""
        letter, category = window[at], unicodedata.category(window[at])
        if letter == "\n":
            return self._end_line(at)
        if letter.isspace():
            if self._lead != "other":  # a quote before white space closes: "Quoi ! » dit-il", as French sets it
                self._mark, self._lead = self._offset + at + 1, ""
        elif self._end is _End.SURE:
            return self._settle(at, is_end=True)
        elif letter in _STOPS or letter in _AT_ONCE or category == "Pe":
            self._state = self._after_stop
            return at
        elif category == "Pf" or letter in _QUOTES:
            self._lead = "quote"
        elif category in ("Ps", "Pi", "Pd", "Cf") or letter in _MARKUP + "¿¡":
            self._lead = "other"
        else:
            is_end = _is_end(self._end, window, at)
            return _WAIT if is_end is None else self._settle(at, is_end=is_end)
        return at + 1

    def _settle(self, at: int, *, is_end: bool) -> int:
        if is_end:
            self._cut(self._mark)
        self._end, self._state = _End.NONE, self._in_text
        return at

    def _end_line(self, at: int) -> int:
        self._end = max(_AT_LINE_END.get(self._end, self._end), self._own)
        self._line = self._offset + at + 1
        self._state = self._in_indent
        return at + 1

    def _in_indent(self, window: str, at: int) -> int:
        letter = window[at]
        if letter == "\n":
            self._end = _End.SURE
            return self._end_line(at)
        if letter.isspace() or letter == ">":  # a quoted line is a line
            return at + 1
        if self._end is _End.SURE:
            self._cut(self._line)
        if marker := _ITEM.match(window, at) or _OWN_LINE.match(window, at):
            self._cut(self._line)
            self._own = max(self._own, _End.OPEN if marker.re is _ITEM else _End.SURE)
            return marker.end()  # there may be another, as in "- 1. "
        if _MARKER_BEGUN.fullmatch(window, at):
            return _WAIT
        if fence := _FENCE.match(window, at):
            self._cut(self._line)
            self._fence, self._code_end = fence[0], _LINE_END if letter == "~" else _INFO_END
        self._blank, self._mark = False, self._line
        self._state = self._in_code if fence else self._in_gap if self._end is not _End.NONE else self._in_text
        return fence.end() if fence else at

    def _in_code(self, window: str, at: int) -> int:
        found = self._code_end.search(window, at)
        if found is None:
            return len(window)
        self._line, self._code_end = self._offset + found.end(), _LINE_END
        self._state = self._in_code_indent if found[0] == "\n" else self._in_text  # "```code```" within a line
        return found.end()

    def _in_code_indent(self, window: str, at: int) -> int:
        letter = window[at]
        if letter.isspace() or letter == ">":
            self._line = self._offset + at + 1 if letter == "\n" else self._line
            return at + 1
        self._cut(self._line)
        if _MARKER_BEGUN.fullmatch(window, at):
            return _WAIT
        fence = _FENCE.match(window, at)
        closed = fence and fence[0].startswith(self._fence) and window[fence.end()].isspace()
        self._own, self._state = _End.SURE, self._in_text if closed else self._in_code
        return at


def _kind(token: str) -> _End:
    for end, words in _ABBREVIATIONS.items():
        if token in words or token.lower() in words:
            return end
    if token.isdigit():
        return _End.ORDINAL if len(token) <= 2 else _End.OPEN  # noqa: PLR2004  days and centuries
    return _End.STARTER if _ACRONYM.fullmatch(token) else _End.OPEN


def _closes(letter: str, end: _End) -> bool:
    """Whether what comes right after a stop belongs to it: quotes, brackets, markup, an emoji, a note's number."""
    category = unicodedata.category(letter)
    if category in ("Pi", "So"):  # “ closes in „German“, opens right after 。; an emoji closes, a bullet opens
        return end is not _End.SURE if category == "Pi" else letter >= "\u2600"
    return category in ("Pe", "Pf", "Cf", "Mn", "Sk") or letter in _QUOTES + _MARKUP + _NOTES


def _is_end(end: _End, window: str, at: int) -> bool | None:
    """Whether an end of this kind is one before what comes now; None: that takes the whole word."""
    letter = window[at]
    small = letter.islower() and not "\u10d0" <= letter <= "\u10ff"  # Georgian has no other
    if end is _End.COUNTER or small or letter in _GOING_ON:
        return False
    if end in (_End.NUMBERED, _End.OPEN):
        return end is _End.OPEN or not letter.isdigit()
    word = _WORD.match(window, at)
    if word and word.end() == len(window):
        return None
    if end is _End.ORDINAL:
        return not word or word[0] not in _COUNTED
    return word is not None and word[0] in _STARTERS and window[word.end()] != "."  # "J. A." are initials
