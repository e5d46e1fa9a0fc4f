"""What the patterns share in which members answer, read one another, and answer again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from pydantic import Field

from symposia_shared.answers import AnswerKind, kind_of
from symposia_shared.consensus import ConsensusName, Likeness, Weights, decide
from symposia_shared.jobs import Member, Members
from symposia_shared.patterns.artefacts import spoken
from symposia_shared.patterns.members import Steps, name_of, turn_of
from symposia_shared.patterns.refusals import Selective
from symposia_shared.play import Round
from symposia_shared.prompts import Sampling
from symposia_shared.turns import Turn
from symposia_shared.verdicts import Ballot, Verdict


class Deliberation(Selective):
    """Openings, then rounds in which each member sees the others' answers without their names."""

    refused: ClassVar[Mapping[ConsensusName, str]] = {}

    rounds: int = Field(3, ge=1, le=8, description="Rounds at most, the openings counted.")
    answer_kind: AnswerKind = Field("auto", description="What is compared and voted on.")
    labels: tuple[str, ...] = Field((), description="The admitted answers of kind label.")
    weights: Weights | None = Field(None, description="Measured accuracies (symposia weights fit); weighted_vote counts by them.")
    peer_chars: int = Field(1200, ge=100, le=100_000, description="Characters shown of a peer's answer; a longer one loses its middle.")
    sampling: Sampling = Sampling(temperature=0.7)

    def roles_needing_instruct(self) -> tuple[Member, ...]:
        """Who reads peers must follow a prompt that says what to do with them: all members, where there is a second round."""
        members: Members = self.members
        return members if self.rounds > 1 else ()

    def open(self) -> Steps[list[str | None]]:
        """The first round: everyone answers alone."""
        turns = [turn_of(self, m, self.prompt, draw=seat) for seat, m in enumerate(self.members)]
        replies = yield Round(turns=tuple(turns), quorum=self.quorum or 1, close_at=self.quorum)
        return [spoken(r) for r in replies]

    def again(self, turns: Sequence[Turn], texts: Sequence[str | None]) -> Steps[list[str | None]]:
        """A further round: who does not answer keeps the answer it has."""
        replies = yield Round(turns=tuple(turns), quorum=self.quorum or 0, close_at=self.quorum)
        return [spoken(r) or before for r, before in zip(replies, texts, strict=True)]

    def kind_of(self, texts: Sequence[str | None]) -> AnswerKind:
        """The kind of the answers, settled once by the openings."""
        if self.answer_kind != "auto":
            return self.answer_kind
        return kind_of([t for t in texts if t is not None], question=self.prompt, labels=self.labels)

    def ballots(self, texts: Sequence[str | None]) -> list[Ballot]:
        """The members' present answers."""
        return [Ballot(member=name_of(m), model=m.model, text=t, params_b=m.params_b) for m, t in zip(self.members, texts, strict=True)]

    def vote(self, rule: ConsensusName, texts: Sequence[str | None], kind: AnswerKind, likeness: Likeness | None = None) -> Verdict:
        """What ``rule`` says of the members' present answers."""
        return self.tally(rule, self.ballots(texts), kind, likeness)

    def tally(self, rule: ConsensusName, ballots: Sequence[Ballot], kind: AnswerKind, likeness: Likeness | None = None) -> Verdict:
        """What ``rule`` says of ``ballots``."""
        return decide(rule, ballots, kind=kind, weights=self.weights, labels=self.labels, likeness=likeness)

    def unanimous(self, texts: Sequence[str | None], kind: AnswerKind, likeness: Likeness | None = None) -> bool:
        """Whether all who spoke, and at least two of the members, say the same."""
        verdict = self.vote("all_agree", texts, kind, likeness)
        return verdict.answer is not None and verdict.n == sum(1 for t in texts if t is not None)
