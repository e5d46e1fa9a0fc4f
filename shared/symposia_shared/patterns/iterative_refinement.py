"""Iterative refinement: a draft, criticised and revised; a revision stays only if its score does not fall."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from symposia_shared.consensus import ConsensusName
from symposia_shared.jobs import Member, Members
from symposia_shared.patterns.artefacts import cut, page, section, spoken
from symposia_shared.patterns.judges import choose
from symposia_shared.patterns.members import Beside, Steps, name_of, named_beside, require_quorum, sober_turn_of, turn_of
from symposia_shared.patterns.refusals import NAMES
from symposia_shared.patterns.scorers import Scored, judge_named, passed_of, program_of, test_turns, tests_named
from symposia_shared.patterns.scores import HIGHEST, score_of, score_prompt
from symposia_shared.play import Play, Round
from symposia_shared.turns import Reply, Turn
from symposia_shared.verdicts import Verdict

ONE_ANSWER = "one answer is refined, so there is nothing to vote on, and the best score decides"


@dataclass(frozen=True, slots=True)
class Version:
    """A text and its score; None: it has not been scored, or no score could be read."""

    text: str
    score: int | None = None
    #: whether a scorer has answered; asked again it would say the same, as scorers draw nothing
    scored: bool = False


class IterativeRefinement(Scored):
    """One member drafts and revises, the others criticise in turn; a revision is kept only if its score does not fall.

    Self-Refine (Madaan et al. 2023, arXiv:2303.17651), with two differences that its critics asked for (Huang et al. 2023,
    arXiv:2310.01798): the critic is another member than the author, and a score that is not the author's decides what is
    kept. The score is the number of ``tests`` passed, where there are tests and code can be run; else, where there is a
    ``judge``, how often of two times it picks the version over the other, the order swapped, and only a revision it picks both
    times is kept; else an integer from 1 to 10 by ``scorer`` (left out: the last member who is not the author). A score that
    cannot be read keeps nothing, and leaves the draft in place. It ends early at the highest score. The first member is the
    author; where it has no draft, the next.
    ``quorum`` is the fewest members that must have answered in the end. ``notes`` of the verdict: the ``scores`` of the
    versions in order, the draft first, None where there is no score; and which of them was ``kept`` (0: the draft).
    """

    refused: ClassVar[Mapping[ConsensusName, str]] = {name: ONE_ANSWER for name in NAMES if name != "best_response"}

    kind: Literal["iterative_refinement"] = "iterative_refinement"
    members: Members = Field(min_length=2, max_length=5)
    consensus: ConsensusName = Field("best_response", description="best_response only: the version with the best score.")
    rounds: int = Field(3, ge=1, le=8, description="Revisions at most.")
    scorer: Beside | None = Field(None, description="A model beside the members that scores every version.")
    answer_chars: int = Field(6000, ge=100, le=1_000_000, description="Characters shown of a version; a longer one loses its middle.")

    @field_validator("scorer")
    @classmethod
    def _scorer_has_a_name(cls, scorer: Member | None, made: ValidationInfo) -> Member | None:
        return named_beside(scorer, "scorer", made.data.get("members", ())) if scorer else None

    @model_validator(mode="after")
    def _scorer_or_judge(self) -> Self:
        if self.scorer is not None and self.judge is not None:
            raise ValueError("there is a 'scorer' and a 'judge'; versions are scored by one of them: leave the other out.")
        return self

    @property
    def beside(self) -> tuple[Member, ...]:
        """The scorer or the judge, where there is one."""
        return (self.scorer,) if self.scorer else super().beside

    def roles_needing_instruct(self) -> tuple[Member, ...]:
        """All: who drafts revises too."""
        return (*self.members, *self.beside)

    def play(self) -> Play:
        """Draft; then criticise, revise and score, until the last round or the highest score."""
        author, best = yield from self._draft()
        critics = [m for m in self.members if m is not author]
        scoring = Scoring(self, self.scorer or critics[-1], by_tests=bool(self.tests))
        spoke, told, at = {name_of(author)}, list[Version](), 0
        for number in range(self.rounds):
            critic = critics[number % len(critics)]
            critique, scoring, best = yield from self._criticised(critic, scoring, best, draw=2 * number + 1, score_too=not told)
            told = told or [best]
            if best.score == scoring.highest:
                break
            if critique is None:
                continue
            spoke.add(name_of(critic))
            revised = yield from self._revised(author, best, critique, draw=2 * number + 2)
            if revised is None or revised.text == best.text:
                continue
            best, revised = yield from scoring.compared(best, revised)
            told[at:] = [best, *told[at + 1:], revised]
            if scoring.keeps(best, revised):
                best, at = revised, len(told) - 1
        require_quorum(self, spoke)
        return Verdict(answer=best.text, spoken_by=name_of(author), rule=f"best_response; scorer: {scoring.name}", notes={
            "scores": [v.score for v in told], "kept": at,
        })

    def _draft(self) -> Steps[tuple[Member, Version]]:
        """The first member who has a draft, and the draft."""
        for seat, member in enumerate(self.members[:-1]):
            (reply,) = yield Round(turns=(turn_of(self, member, self.prompt, draw=100 + seat),), quorum=0)
            text = spoken(reply)
            if text is not None:
                return member, Version(text)
        last = self.members[-1]
        (reply,) = yield Round(turns=(turn_of(self, last, self.prompt, draw=100 + len(self.members)),), quorum=1)
        return last, Version(spoken(reply) or "")

    def _criticised(
        self, critic: Member, scoring: Scoring, best: Version, *, draw: int, score_too: bool,
    ) -> Steps[tuple[str | None, Scoring, Version]]:
        """What the critic says of the best version; with ``score_too`` it is scored in the same round."""
        prompt = page(
            section("Task", self.prompt), section("Answer", cut(best.text, self.answer_chars)),
            "Name the worst fault of this answer: where it is, why it is wrong, and how to correct it. Two sentences. "
            "Do not rewrite the answer.",
        )
        scored = scoring.turns(best) if score_too else ()
        replies = yield Round(turns=(turn_of(self, critic, prompt, draw=draw), *scored), quorum=0)
        if scored:
            best, scoring = scoring.scored(best, replies[1:]), scoring.after(replies[1:])
        return spoken(replies[0]), scoring, best

    def _revised(self, author: Member, best: Version, critique: str, *, draw: int) -> Steps[Version | None]:
        prompt = page(
            section("Task", self.prompt), section("Your answer", cut(best.text, self.answer_chars)),
            section("A reader's criticism", cut(critique, 1500)),
            "Write the corrected answer, in full, and nothing else. Keep what is right.",
        )
        (reply,) = yield Round(turns=(turn_of(self, author, prompt, draw=draw),), quorum=0)
        text = spoken(reply)
        return Version(text) if text is not None else None


@dataclass(frozen=True, slots=True)
class Scoring:
    """How versions are scored: by tests that are run, by the judge, or by a member."""

    job: IterativeRefinement
    scorer: Member
    by_tests: bool

    @property
    def highest(self) -> int:
        """A version of this score cannot be improved; a judge only compares two."""
        return len(self.job.tests) if self.by_tests else HIGHEST

    @property
    def judge(self) -> Member | None:
        """The judge, where it is the one who decides."""
        return None if self.by_tests else self.job.judge

    @property
    def name(self) -> str:
        """Who scores, as it stands in the verdict's rule."""
        if self.by_tests:
            return tests_named(self.job.tests)
        return judge_named(self.judge) if self.judge else f"{name_of(self.scorer)}, 1 to {HIGHEST}"

    def keeps(self, best: Version, revised: Version) -> bool:
        """Whether the revision stays: its score is known and has not fallen; a judge must have picked it both times."""
        if revised.score is None or best.score is None:
            return False
        return revised.score == 2 if self.judge else revised.score >= best.score

    def turns(self, version: Version) -> tuple[Turn, ...]:
        """The turns that score ``version``: one per test, or one; none for a judge, who compares two."""
        if self.by_tests:
            return test_turns(program_of(version.text), self.job.tests)
        if self.judge:
            return ()
        return (sober_turn_of(self.job, self.scorer, score_prompt(self.job.prompt, version.text, most_chars=self.job.answer_chars)),)

    def scored(self, version: Version, replies: Sequence[Reply]) -> Version:
        """``version`` with the score in the replies to its ``turns``."""
        if not self.by_tests:
            return Version(version.text, score_of(spoken(replies[0])), replies[0].spoke)
        passed = passed_of(replies)
        return Version(version.text, passed, passed is not None)

    def after(self, replies: Sequence[Reply]) -> Scoring:
        """By the judge or the scorer from now on, where a test could not be run at all."""
        if self.by_tests and passed_of(replies) is None:
            return Scoring(self.job, self.scorer, by_tests=False)
        return self

    def compared(self, best: Version, revised: Version) -> Steps[tuple[Version, Version]]:
        """Both versions with their scores; the best one is scored now where no scorer has answered for it yet."""
        if self.judge:
            picks = yield from choose(self.job, self.judge, [best.text, revised.text], most_chars=self.job.answer_chars)
            read = any(p is not None for p in picks)
            first, second = (Version(v.text, picks.count(i) if read else None, read) for i, v in enumerate((best, revised)))
            return first, second
        new, old = self.turns(revised), () if best.scored else self.turns(best)
        replies = yield Round(turns=(*new, *old), quorum=0)
        return self.scored(best, replies[len(new):]) if old else best, self.scored(revised, replies[:len(new)])
