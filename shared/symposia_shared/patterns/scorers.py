"""What best_response scores answers by: tests that are run, a judge asked twice with the order swapped, or mean log-probability.

One mechanism for all patterns that admit best_response; the scorer is named in the verdict's rule.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import Field, JsonValue, ValidationInfo, field_validator, model_validator

from symposia_shared.answers import AnswerKind, extract
from symposia_shared.jobs import Member
from symposia_shared.patterns.checks import PYTHON, python_check, ruling_of
from symposia_shared.patterns.judges import choose
from symposia_shared.patterns.members import Beside, Steps, distinct_models, name_of, named_beside
from symposia_shared.patterns.refusals import Selective
from symposia_shared.play import Round
from symposia_shared.turns import Reply, Turn
from symposia_shared.verdicts import Ballot, Verdict

TESTS_DECIDE = "the tests decide, by best_response"
JUDGE_DECIDES = "the judge decides, by best_response"
LOGPROB = "mean log-probability of the answer's tokens"

#: statements that raise when the code asked for is wrong
Tests = Annotated[tuple[Annotated[str, Field(min_length=1, max_length=4000)], ...], Field(max_length=16)]


@dataclass(frozen=True, slots=True)
class Scores:
    """One score per ballot, higher is better, None where there is none; ``by`` is the scorer as the verdict's rule names it."""

    by: str
    of: tuple[float | None, ...]
    #: what else it found, for the verdict's notes
    notes: Mapping[str, JsonValue] = field(default_factory=dict)

    def on(self, ballots: Sequence[Ballot]) -> list[Ballot]:
        """The ballots with these scores."""
        return [b.model_copy(update={"score": s}) for b, s in zip(ballots, self.of, strict=True)]

    def named_in(self, verdict: Verdict) -> Verdict:
        """The verdict with the scorer in its rule and what it found in its notes."""
        return verdict.model_copy(update={"rule": f"{verdict.rule}; scorer: {self.by}", "notes": {**verdict.notes, **self.notes}})


class Scored(Selective):
    """A collaboration whose answers can be scored by ``tests`` or by a ``judge``; either means best_response."""

    judge: Beside | None = Field(None, description="A model beside the members that picks the best answer, asked twice with the order swapped.")
    tests: Tests = Field((), description="Python statements that raise when the code asked for is wrong; run in the sandbox.")

    @model_validator(mode="before")
    @classmethod
    def _a_scorer_means_best_response(cls, raw: Any) -> Any:
        if isinstance(raw, dict) and (raw.get("judge") or raw.get("tests")) and raw.get("consensus") is None:
            return {**raw, "consensus": "best_response"}
        return raw

    @field_validator("judge")
    @classmethod
    def _judge_has_a_name(cls, judge: Member | None, made: ValidationInfo) -> Member | None:
        return named_beside(judge, "judge", made.data.get("members", ())) if judge else None

    @model_validator(mode="after")
    def _a_scorer_goes_with_best_response(self) -> Scored:
        given, why = ("tests", TESTS_DECIDE) if self.tests else ("judge", JUDGE_DECIDES)
        asked = getattr(self, "consensus", None)
        if (self.tests or self.judge) and asked != "best_response":
            raise ValueError(f"consensus is {asked!r}, which a {self.name} refuses with {given!r}: {why}; leave out 'consensus' or {given!r}.")
        return self

    @property
    def models(self) -> tuple[str, ...]:
        """The members' checkpoints, and the judge's."""
        return distinct_models(*self.members, *self.beside)

    @property
    def beside(self) -> tuple[Member, ...]:
        """The judge, where there is one."""
        return (self.judge,) if self.judge else ()

    def roles_needing_instruct(self) -> tuple[Member, ...]:
        """Who must follow a prompt about others' answers: the judge."""
        return self.beside

    def scores(self, ballots: Sequence[Ballot], sides: Sequence[str | None], *, most_chars: int) -> Steps[Scores | None]:
        """By the tests, where all could be run; else by the judge, where there is one; else None. ``sides``: what each ballot says."""
        found = (yield from by_tests(self.tests, [b.text for b in ballots])) if self.tests else None
        if found is None and self.judge is not None:
            found = yield from by_judge(self, self.judge, ballots, sides, most_chars=most_chars)
        return found


def by_tests(tests: Sequence[str], texts: Sequence[str | None]) -> Steps[Scores | None]:
    """How many tests each text's program passes: one round, one turn per test and different program. None where one could not be run."""
    programs = [None if t is None else program_of(t) for t in texts]
    distinct = sorted({p for p in programs if p is not None})
    if not distinct:
        return None
    replies = yield Round(turns=tuple(turn for p in distinct for turn in test_turns(p, tests)), quorum=0)
    passed = {p: passed_of(replies[i * len(tests):(i + 1) * len(tests)]) for i, p in enumerate(distinct)}
    if None in passed.values():
        return None
    scores = tuple(None if p is None else passed[p] for p in programs)
    return Scores(tests_named(tests), scores, {"passed": list(scores)})


def by_judge(job: Scored, judge: Member, ballots: Sequence[Ballot], sides: Sequence[str | None], *, most_chars: int) -> Steps[Scores]:
    """How often the judge picks each answer: one round of two turns, none where there is but one answer."""
    first = {side: place for place, side in reversed(list(enumerate(sides))) if side is not None}
    places = sorted(first.values())
    picks: list[int | None] = []
    if len(places) > 1:
        picks = yield from choose(job, judge, [ballots[p].text or "" for p in places], most_chars=most_chars)
    chosen = [places[p] for p in picks if p is not None]
    picked = [sides[place] for place in chosen]
    scores = tuple(float(picked.count(side)) if picked else None for side in sides)
    return Scores(judge_named(judge), scores, {"picked": [ballots[place].member for place in chosen]})


def by_logprob(ballots: Sequence[Ballot]) -> Scores | None:
    """By the scores the ballots came with, which are mean log-probabilities; None where no engine reported one."""
    return Scores(LOGPROB, tuple(b.score for b in ballots)) if any(b.score is not None for b in ballots) else None


def judge_named(judge: Member) -> str:
    """A judge, as the verdict's rule names it."""
    return f"{name_of(judge)}, asked twice with the order swapped"


def tests_named(tests: Sequence[str]) -> str:
    """Tests, as the verdict's rule names them."""
    return f"{PYTHON}, tests passed of {len(tests)}"


def program_of(text: str) -> str:
    """The program in a text; the whole text where none is marked."""
    return extract(text, "code") or text


def test_turns(program: str, tests: Sequence[str]) -> tuple[Turn, ...]:
    """One turn per test."""
    return tuple(python_check(program, [test]) for test in tests)


def passed_of(replies: Sequence[Reply]) -> int | None:
    """How many of the tests were passed; None where one could not be run at all."""
    rulings = [ruling_of(r) for r in replies]
    return None if None in rulings else sum(1 for r in rulings if r is not None and r.passed)


def kind_scored(kind: AnswerKind, tests: Sequence[str]) -> AnswerKind:
    """What is compared where tests are given and nothing else is said: code."""
    return "code" if tests and kind == "auto" else kind
