"""The fuzz in its short form, and that it finds what it is made to find. The long form: ``python -m benchmarks.fuzz``."""

from __future__ import annotations

import pytest
from benchmarks.fuzz.run import run
from benchmarks.fuzz.targets import Target, holds, same, targets
from hypothesis import strategies as st

from symposia_shared.errors import BadInput

TARGETS = targets()


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
def test_whatever_is_given_is_refused_in_words_or_given_back_as_it_was(target: Target) -> None:
    counted, error = run(target, seconds=60, most=60)
    if error is not None:
        raise error
    assert counted.examples >= 50


def test_sound_examples_are_accepted_so_that_the_fuzz_reaches_behind_the_first_look() -> None:
    accepted = {t.name: run(t, seconds=60, most=60)[0].accepted for t in TARGETS if t.name in ("job", "chat body", "batch line", "value Result", "team's name")}
    assert all(n > 0 for n in accepted.values()), accepted


def _refuses(given: int) -> None:
    raise BadInput(f"{given} is refused.", field="x")


def _crashes(given: int) -> None:
    if given > 10:
        raise KeyError(given)


def _forgets(given: int) -> None:
    same(given, given % 100)


@pytest.mark.parametrize(("look", "broken"), [(_refuses, False), (_crashes, True), (_forgets, True)])
def test_an_error_outside_the_tree_and_a_loss_are_found_and_a_refusal_is_not(look: object, broken: bool) -> None:
    target = Target("made", st.integers(0, 1000), look)  # type: ignore[arg-type]
    assert (run(target, seconds=20, most=200)[1] is not None) is broken
    assert not holds(Target("made", st.just(1), _refuses), 1)
