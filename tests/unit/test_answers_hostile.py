"""Hostile texts cost linear time and never raise. Time is told by growth, in processor time, not by a limit."""

from __future__ import annotations

import time
from typing import get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from symposia_shared.answers import AnswerKind, extract, kind_of
from symposia_shared.answers.reading import MOST_CHARACTERS, said

KINDS: tuple[AnswerKind, ...] = get_args(AnswerKind)
UNITS = [
    "9", "1,111", "1/", "1 ", "1.", "- ", "{", "[", "(", '"', '"answer": "', "\\boxed{", "\\boxed a", "the answer is ", "\nanswer: ",
    "#### ", "$", "\\(", "**", "```\n", "def f():\n", "if x:\n ", "1+", "\n", "\nquestion:", "<think>", "option A ", "(A)", "\\frac{",
    "\\sqrt{", "answer word ", '{"a":', "[ANSWER]", "\\", "assert ", "output is `", "correct option ", "<|", "not spam ", "x=", "^{",
    "\\text{", "\\u0041", "lambda:", "1 2/", "f(", "assert f(",
]
#: what real answers and attacks are made of
FRAGMENTS = [
    *UNITS, "answer", " is ", "}", "]", ")", "\\\\", "\\frac12", "\x00", "\ud800", "…", "é", "</think>", "</s>", "_", "B", "yes", "True",
    "'",
]


def seconds(text: str, kind: AnswerKind) -> float:
    """Processor time of one extraction."""
    began = time.process_time()
    extract(text, kind, labels=("spam", "ham"))
    return time.process_time() - began


def grows_linearly(unit: str, kind: AnswerKind) -> bool:
    """Whether four times the text costs less than ten times the time; quadratic would be sixteen. One of three tries will do."""
    short, long = (unit * (size // len(unit)) for size in (10_000, 40_000))
    return any(seconds(long, kind) < 10 * seconds(short, kind) + 0.02 for _ in range(3))


@pytest.mark.parametrize("kind", KINDS)
def test_four_times_the_hostile_text_costs_about_four_times_the_time(kind: AnswerKind) -> None:
    assert [unit for unit in UNITS if not grows_linearly(unit, kind)] == []


def test_of_a_text_without_end_the_beginning_and_the_end_are_read() -> None:
    text = "The answer is 7.\n" + "x " * 10**6 + "\n"
    assert len(said(text)) <= MOST_CHARACTERS + 1
    assert extract(text, "number") == "7"
    assert extract("x " * 10**6 + "\nThe answer is 8.", "number") == "8"


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=6), max_size=25).map("".join), st.sampled_from(KINDS))
def test_no_text_makes_an_extraction_raise_and_its_answer_is_stable(text: str, kind: AnswerKind) -> None:
    found = extract(text, kind)
    assert found is None or isinstance(found, str)
    assert found == extract(text, kind)
    if found is not None:
        found.encode()


@settings(max_examples=200)
@given(st.lists(st.lists(st.sampled_from(FRAGMENTS), max_size=12).map("".join), max_size=6))
def test_a_kind_is_found_for_any_texts_and_their_order_does_not_matter(texts: list[str]) -> None:
    kind = kind_of(texts)
    assert kind in KINDS
    assert kind != "auto"
    assert kind == kind_of(texts[::-1])


@given(st.integers(-10**15, 10**15), st.integers(0, 99))
def test_a_number_is_read_back_however_it_is_dressed(whole: int, cents: int) -> None:
    plain = f"{whole}.{cents:02d}".rstrip("0").rstrip(".") if cents else str(whole)
    dressed = f"{abs(whole):,}" + (f".{cents:02d}" if cents else "")
    sign = "-" if whole < 0 else ""
    number = sign + dressed
    for text in (f"The answer is {sign}${dressed}.", f"#### {number}", f"\\boxed{{{number}}}", f'{{"answer": "{number}"}}'):
        assert extract(text, "number") == plain
