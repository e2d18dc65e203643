"""The tree of a map-reduce: every item once, in order, within the limits, as many calls as foreseen."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmlab.errors import BadRequest, TooLong
from llmlab.estimate import tokens
from llmlab.plan import Script
from llmlab.step import Step
from llmlab.tree import Limits, Node, Reduction, Tree, pack
from llmlab.types import Item, Outcome, Prompt, Reply

OVERHEAD = tokens(Prompt.of("").messages)


def reduction(template: str = "{mapped_outputs}", separator: str = " ") -> Reduction:
    return Reduction(Step("reduce", template), separator, {})


def grow(
    answers: list[str | Exception],
    limits: Limits,
    *,
    on_error: Any = "skip",
    combine: Any = None,
    reduce: Any = None,
) -> tuple[Tree, list[list[tuple[int, Item]]]]:
    """Grow a tree whose items are answered as given and whose combinations by `combine`; what each level asked."""

    def items(tree: Tree) -> list[Script]:
        return [tree.ask(place, Prompt.of(f"item {place}")) for place in range(len(answers))]

    tree = Tree(items, reduce or reduction(), limits, on_error)
    asked: list[list[tuple[int, Item]]] = []
    for number, level in enumerate(tree.levels()):
        asked.append([])
        for script in level:  # type: ignore[union-attr]
            position, item = next(script)
            asked[-1].append((position, item))
            answer = answers[position] if number == 0 else (combine or joined)(item)
            try:
                script.send(outcome(position, item, answer))
            except StopIteration:
                continue
            raise AssertionError("a node asks once")
    return tree, asked


def joined(item: Item) -> str:
    """What a model that repeats everything would say."""
    assert isinstance(item, Prompt)
    return item.text


def outcome(position: int, item: Any, answer: str | Exception) -> Outcome:
    if isinstance(answer, Exception):
        return Outcome(position, item, "error", None, answer)
    return Outcome(position, item, "ok", Reply(answer, "stop", "test", "m"), None)


def leaves(node: Node) -> list[int]:
    return [leaf for child in node.children for leaf in leaves(child)] if node.level else [node.place]


def names(count: int) -> list[str | Exception]:
    return [f"<{n}>" for n in range(count)]


# -- packing ----------------------------------------------------------------------------------------------


sizes = st.lists(st.integers(1, 50), max_size=200)


@settings(max_examples=60, deadline=None)
@given(sizes, st.integers(2, 12) | st.none(), st.integers(1, 300))
def test_groups_are_neighbours_as_long_as_they_can_be_and_cover_each_place_once(
    each: list[int], most: int | None, room: int
) -> None:
    def fits(start: int, stop: int) -> bool:
        assert stop - start > 1, "one alone is never asked for"
        return sum(each[start:stop]) <= room

    groups = list(pack(len(each), most=most, fits=fits))
    assert [place for group in groups for place in group] == list(range(len(each)))
    for group in groups:
        assert len(group) == 1 or sum(each[group.start : group.stop]) <= room
        assert most is None or len(group) <= most
    for group in groups[:-1]:
        longer = each[group.start : group.stop + 1]
        assert len(group) == most or sum(longer) > room, "one more would not have fitted"


# -- the tree ---------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.integers(2, 12))
def test_every_item_is_in_the_answer_once_and_in_order(count: int, fan_in: int) -> None:
    tree, asked = grow(names(count), Limits(fan_in))
    assert tree.root is not None
    assert tree.root.text == " ".join(str(name) for name in names(count))
    assert leaves(tree.root) == list(range(count))
    assert tree.root.items == count
    assert all(2 <= len(node.children) <= fan_in for node in tree.nodes if node.level)
    assert [position for level in asked for position, _ in level] == list(range(len(tree.nodes)))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.integers(2, 12))
def test_the_calls_are_as_many_as_foreseen(count: int, fan_in: int) -> None:
    tree, _ = grow(names(count), Limits(fan_in), combine=lambda _: "short")
    assert len(tree.nodes) == count + Limits(fan_in).calls(count, 256)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=60), min_size=1, max_size=60), st.integers(60, 200))
def test_no_prompt_is_longer_than_the_limit_and_the_tree_comes_to_an_end(texts: list[Any], room: int) -> None:
    limits = Limits(max_input_tokens=room)
    tree, asked = grow(texts, limits, combine=lambda _: "four word long text")
    assert tree.root is not None
    assert leaves(tree.root) == [place for place, text in enumerate(texts) if len(texts) == 1 or limits.size(
        Prompt.of(text)) <= room]  # fmt: skip
    for level in asked[1:]:
        for _, item in level:
            assert isinstance(item, Prompt)
            assert tokens(item.messages) <= room


@settings(max_examples=60, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=100), st.integers(2, 5))
def test_failed_items_are_left_out_and_the_others_keep_their_order(fails: list[bool], fan_in: int) -> None:
    answers: list[Any] = [BadRequest("no") if bad else f"<{n}>" for n, bad in enumerate(fails)]
    tree, _ = grow(answers, Limits(fan_in))
    left = [n for n, bad in enumerate(fails) if not bad]
    assert (tree.root is None) == (not left)
    if tree.root is not None:
        assert leaves(tree.root) == left
        assert tree.root.items == len(left)


def test_one_that_is_left_over_goes_up_without_a_call() -> None:
    tree, asked = grow(names(11), Limits(10))
    assert [len(level) for level in asked] == [11, 1, 1]
    assert [child.position for child in tree.nodes[-1].children] == [11, 10]


def test_one_item_is_its_own_answer() -> None:
    tree, asked = grow(["only"], Limits())
    assert tree.root is tree.nodes[0]
    assert [len(level) for level in asked] == [1]


def test_without_limits_ten_are_combined_at_a_time() -> None:
    _, asked = grow(names(100), Limits())
    assert [len(level) for level in asked] == [100, 10, 1]
    _, asked = grow(names(100), Limits(max_input_tokens=100_000))
    assert [len(level) for level in asked] == [100, 1], "a limit of tokens alone packs all that fit"


def test_a_combination_that_fails_leaves_out_the_items_below_it() -> None:
    def combine(item: Item) -> Any:
        return BadRequest("no") if "<3>" in joined(item) else joined(item)

    tree, _ = grow(names(9), Limits(3), combine=combine)
    assert tree.root is not None
    assert leaves(tree.root) == [0, 1, 2, 6, 7, 8]
    assert tree.root.items == 6


def test_an_answer_that_fits_into_no_prompt_is_left_out() -> None:
    tree, _ = grow(["a", "b" * 4000, "c"], Limits(max_input_tokens=100))
    assert tree.root is not None
    assert tree.root.text == "a c"
    assert isinstance(tree.first_error, TooLong)
    assert "node 1" in str(tree.first_error)


def test_with_raise_it_ends_the_job() -> None:
    with pytest.raises(TooLong, match="node 1"):
        grow(["a", "b" * 4000, "c"], Limits(max_input_tokens=100), on_error="raise")


@pytest.mark.parametrize("on_error", ["skip", "raise"])
def test_a_level_that_cannot_get_smaller_is_an_error_that_says_what_to_do(on_error: str) -> None:
    with pytest.raises(TooLong, match=r"3 answers.*no two neighbours.*max_input_tokens=100.*map_max_tokens"):
        grow(["x" * 300] * 3, Limits(max_input_tokens=100), on_error=on_error)


def test_a_level_that_gets_a_little_smaller_goes_on() -> None:
    tree, asked = grow(["x" * 300, "a", "b", "x" * 300], Limits(max_input_tokens=100), combine=lambda _: "s")
    assert tree.root is not None
    assert tree.root.items == 4
    assert len(asked) > 2


def test_an_empty_answer_is_an_answer() -> None:
    tree, _ = grow(["", "b"], Limits())
    assert tree.root is not None
    assert tree.root.items == 2


# -- prompts ----------------------------------------------------------------------------------------------


def test_answers_are_put_in_as_they_are() -> None:
    tree, asked = grow(["{item} {0} {{", "%s {mapped_outputs}"], Limits(), reduce=reduction("C: {mapped_outputs}", "|"))
    assert joined(asked[1][0][1]) == "C: {item} {0} {{|%s {mapped_outputs}"
    assert tree.root is not None


def test_a_function_gets_the_answers_as_a_list() -> None:
    ask = Reduction(Step("reduce", lambda texts: f"{len(texts)}: {'+'.join(texts)}"), "", {"max_tokens": 7})
    _, asked = grow(names(3), Limits(), reduce=ask)
    item = asked[1][0][1]
    assert isinstance(item, Prompt)
    assert (item.text, item.max_tokens) == ("3: <0>+<1>+<2>", 7)


# -- limits -----------------------------------------------------------------------------------------------


def test_a_prompts_size_is_what_the_estimator_says_or_the_users_tokenizer() -> None:
    prompt = Prompt.of("one two three", system="be short")
    assert Limits().size(prompt) == tokens(prompt.messages)
    assert Limits(count_tokens=lambda text: len(text.split())).size(prompt) == 3 + 2 * 4 + 5


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"fan_in": 1}, ValueError, "fan_in must be at least 2, not 1"),
        ({"fan_in": 2.0}, TypeError, "fan_in must be a whole number"),
        ({"fan_in": True}, TypeError, "fan_in must be a whole number"),
        ({"max_input_tokens": 0}, ValueError, "max_input_tokens must be at least 1"),
        ({"count_tokens": 4}, TypeError, "count_tokens must be a function"),
    ],
)
def test_bad_limits_are_an_error(settings: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        Limits(**settings)
