"""What is told of a job that is followed: the same, in the same order, whatever was heard of it while it ran."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from symposia.api.following import Closed, Ended, Following, Told, Word, speaks
from symposia_shared.jobs import Collaboration, Inference, Member
from symposia_shared.patterns.artefacts import spoken
from symposia_shared.patterns.debate import Debate
from symposia_shared.patterns.hierarchical import Hierarchical
from symposia_shared.patterns.pipeline import Pipeline
from symposia_shared.patterns.specialist_team import SpecialistTeam
from symposia_shared.rehearsal import rehearse
from symposia_shared.results import Result
from symposia_shared.said import LONGEST_WORD, Piece, whole_words, words
from symposia_shared.turns import Abstention, Completion, Reply, Turn

TEXT = "The whole of it,  in\nseveral words\nand more "


def members(many: int) -> tuple[Member, ...]:
    return tuple(Member(model="test/echo", name=f"m{n}") for n in range(many))


JOBS: list[Collaboration] = [
    Pipeline(members=members(3), prompt="?"), Hierarchical(members=members(3), prompt="?"), SpecialistTeam(members=members(3), prompt="?"),
    Debate(members=members(2), prompt="?", rounds=2, answer_kind="number"),
]


def says(_number: int, _place: int, _turn: Turn) -> Reply:
    return Completion(text=TEXT)


def told_of(result: Result, job: Any, pieces: list[Piece]) -> list[Told]:
    """All that is told when these pieces are heard, each as soon as its round may be spoken in, and then the end is."""
    async def run() -> list[Told]:
        state, told = Following(job), list[Told]()
        await state.look()
        for record in result.rounds[:-1] if isinstance(job, Collaboration) else ():
            for piece in pieces:
                told += state.hear(piece) if piece.round <= record.round else []
            told += await state.closed(record)
        for piece in pieces:
            told += state.hear(piece)
        return told + await state.ended(result)

    return asyncio.run(run())


@pytest.mark.parametrize("job", JOBS, ids=lambda j: j.name)
def test_a_play_keeps_its_promise_of_who_writes_the_verdict(job: Collaboration) -> None:
    result = rehearse(job, says).result("j", job)
    seats = [s for n in range(len(result.rounds)) if (s := speaks(job, result.rounds[:n])) is not None]
    assert len(seats) == (0 if job.name == "debate" else 1)
    for number, place in seats:
        assert number == len(result.rounds) - 1
        assert result.answer == spoken(result.rounds[number].turns[place].reply)


@pytest.mark.parametrize("job", JOBS, ids=lambda j: j.name)
@given(cuts=st.lists(st.integers(0, len(TEXT)), max_size=8), lost=st.sets(st.integers(0, 8)))
@settings(max_examples=25)
def test_whatever_is_heard_the_same_is_told_in_the_same_order(job: Collaboration, cuts: list[int], lost: set[int]) -> None:
    result = rehearse(job, says).result("j", job)
    last = len(result.rounds) - 1
    edges = sorted({0, len(TEXT), *cuts})
    pieces = [Piece(fence="1", at=a, text=TEXT[a:b], round=last) for n, (a, b) in enumerate(itertools.pairwise(edges)) if n not in lost]
    told, silent = told_of(result, job, pieces), told_of(result, job, [])
    assert told == silent
    assert "".join(t.text for t in told if isinstance(t, Word)) == (result.answer or "")
    assert [t.record.round for t in told if isinstance(t, Closed)] == list(range(len(result.rounds)))
    assert told[-1] == Ended(result)


def test_a_synthesis_that_fails_after_some_of_it_was_told_ends_in_a_divergence() -> None:
    job = Pipeline(members=members(2), prompt="?")

    def fails(number: int, _place: int, _turn: Turn) -> Reply:
        return Completion(text="draft") if number == 0 else Abstention(cause="bug")

    result = rehearse(job, fails).result("j", job)
    assert result.answer == "draft"
    heard = told_of(result, job, [Piece(fence="1", at=0, text="Something else ", round=1)])
    assert isinstance(heard[-1], Ended)
    assert heard[-1].diverged
    quiet = told_of(result, job, [])  # nobody was told anything: the earlier stage's work is the verdict
    assert [type(t) for t in quiet] == [Closed, Closed, Word, Ended]


def test_a_single_prompt_is_told_word_by_word_and_its_space_kept() -> None:
    job = Inference(model="test/echo", prompt="?")
    result = rehearse(job, says).result("j", job)
    told = told_of(result, job, [Piece(fence="1", at=0, text="The whole of")])
    assert "".join(t.text for t in told if isinstance(t, Word)) == TEXT
    assert told == told_of(result, job, [])


@given(st.text(max_size=60), st.integers(0, 60))
def test_words_of_a_beginning_are_the_first_words_of_the_whole(text: str, cut: int) -> None:
    whole = words(text)
    assert "".join(whole) == text
    assert all(len(w.strip()) <= LONGEST_WORD for w in whole)
    known = whole_words(text[:cut])
    assert text.startswith(known)
    assert words(known) == whole[:len(words(known))]
