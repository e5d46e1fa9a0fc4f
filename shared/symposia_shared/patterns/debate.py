"""Debate: members answer, read one another, and answer again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from symposia_shared.answers import AnswerKind
from symposia_shared.consensus import ConsensusName, Likeness
from symposia_shared.jobs import Member, Members
from symposia_shared.patterns.artefacts import cut, page, section
from symposia_shared.patterns.deliberation import Deliberation
from symposia_shared.patterns.likeness import likeness_of
from symposia_shared.patterns.members import Steps, turn_of
from symposia_shared.patterns.peers import flips, last_line, lettered, positions, shuffled
from symposia_shared.patterns.scorers import Scored, kind_scored
from symposia_shared.play import Play
from symposia_shared.turns import Turn
from symposia_shared.verdicts import Verdict

NO_SCORES = "nobody scores the answers, and what repeats a peer's text is likely, whoever is right"


class Debate(Scored, Deliberation):
    """Two to four members answer, read one another's answers without names, and answer again; a vote or a judge decides.

    Du et al. 2023, arXiv:2305.14325. Each round every member sees the latest answers of the others in an order of its own
    (seeded by sha256 of the job's seed, prompt, round and seat) and looks for mistakes before it answers anew. It ends
    early when all who spoke agree. best_response scores the last answers by the ``tests`` they pass, or by a ``judge``: it is
    asked twice, the order of the answers swapped, and gives each answer the number of times it was picked; the vote decides
    where it picks none. ``notes`` of the verdict: ``flips``, how many members changed their answer in each round after the
    first; ``picked``, the judge's choices by member; ``passed``, tests by member. Free texts are compared by a recorded
    ``check/likeness`` after each round in which they differ.
    """

    #: 2: free texts are compared by a recorded turn
    version: ClassVar[int] = 2

    kind: Literal["debate"] = "debate"
    members: Members = Field(min_length=2, max_length=4)
    consensus: ConsensusName | None = Field(None, description="Left out: majority_vote, or best_response where there is a judge or there are tests.")
    early_stop: bool = Field(True, description="End as soon as all who spoke agree.")

    @model_validator(mode="after")
    def _best_response_needs_a_scorer(self) -> Self:
        if self.consensus == "best_response" and self.judge is None and not self.tests:
            raise ValueError(f"consensus is 'best_response', which a debate refuses without a judge or tests: {NO_SCORES}; "
                             "give 'judge' a model outside the debate, or 'tests' for the code.")
        return self

    def roles_needing_instruct(self) -> tuple[Member, ...]:
        """All who read others' answers."""
        return (*Deliberation.roles_needing_instruct(self), *self.beside)

    def kind_of(self, texts: Sequence[str | None]) -> AnswerKind:
        """As of any deliberation; code where there are tests."""
        kind = kind_scored(self.answer_kind, self.tests)
        return super().kind_of(texts) if kind == "auto" else kind

    def play(self) -> Play:
        """Openings, revisions until agreement or the last round, the vote or the judge."""
        texts = yield from self.open()
        kind, changed = self.kind_of(texts), list[int]()
        alike = yield from likeness_of(texts, kind)
        for number in range(1, self.rounds):
            if self.early_stop and self.unanimous(texts, kind, alike):
                break
            before = texts
            texts = yield from self.again([self._rebuttal(seat, texts, number, kind) for seat in range(len(texts))], texts)
            alike = yield from likeness_of([*before, *texts], kind)
            changed.append(flips(before, texts, kind, self.labels, alike))
        verdict = yield from self._decided(texts, kind, alike)
        return verdict.model_copy(update={"notes": {**verdict.notes, "flips": list(changed)}})

    def _rebuttal(self, seat: int, texts: Sequence[str | None], number: int, kind: AnswerKind) -> Turn:
        others = [t for i, t in enumerate(texts) if i != seat and t is not None]
        others = shuffled(others, self.sampling.seed, self.prompt, number, seat)
        own = texts[seat]
        prompt = page(
            section("Question", self.prompt), section("Your answer", cut(own, self.peer_chars) if own else None),
            section("What others answered", lettered(others, most_chars=self.peer_chars)),
            "Look for a mistake in each answer, in yours too. Then answer the question again, in full. Change your answer only if it is wrong.",
            last_line(kind),
        )
        return turn_of(self, self.members[seat], prompt, draw=number * len(self.members) + seat)

    def _decided(self, texts: Sequence[str | None], kind: AnswerKind, alike: Likeness | None) -> Steps[Verdict]:
        if self.consensus != "best_response":
            return self.vote(self.consensus or "majority_vote", texts, kind, alike)
        ballots = self.ballots(texts)
        scores = yield from self.scores(ballots, positions(texts, kind, self.labels, alike), most_chars=self.peer_chars)
        verdict = self.tally("best_response", scores.on(ballots) if scores else ballots, kind, alike)
        return scores.named_in(verdict) if scores else verdict
