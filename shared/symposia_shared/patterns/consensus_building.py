"""Consensus building: rounds of answers and anonymous summaries, until enough members agree."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

from pydantic import Field

from symposia_shared.answers import AnswerKind
from symposia_shared.consensus import ConsensusName, Likeness
from symposia_shared.jobs import Members
from symposia_shared.patterns.artefacts import cut, page, section
from symposia_shared.patterns.deliberation import Deliberation
from symposia_shared.patterns.likeness import likeness_of
from symposia_shared.patterns.members import turn_of
from symposia_shared.patterns.peers import last_line, positions, shuffled
from symposia_shared.play import Play
from symposia_shared.turns import Turn
from symposia_shared.verdicts import Verdict

NO_SCORES = "nobody scores the answers, members only read and revise them"


class ConsensusBuilding(Deliberation):
    """Three to ten members answer, read an anonymous summary of all answers, and revise, until enough of them agree.

    The Delphi method (Dalkey and Helmer 1963): anonymous answers, controlled feedback, revision. The summary is made by
    the code: each different answer once, with its votes and one member's reasons, in an order seeded by sha256 of the
    job's seed, prompt and round. It ends when ``threshold`` of the votes agree, cast by at least two members and by more
    than half of them, or with the last round; then ``agreed`` is False, and the answer is the majority's with the dissent
    beside it (all_agree gives no answer then). ``notes`` of the verdict: ``agreement``, the share after each round.
    """

    refused: ClassVar[Mapping[ConsensusName, str]] = {"best_response": NO_SCORES}

    #: 2: free texts are compared by a recorded turn
    version: ClassVar[int] = 2

    kind: Literal["consensus_building"] = "consensus_building"
    members: Members = Field(min_length=3, max_length=10)
    consensus: ConsensusName = "majority_vote"
    threshold: float = Field(0.8, gt=0.5, le=1.0, description="The share of the votes, above one half, that counts as agreement.")
    peer_chars: int = Field(600, ge=100, le=100_000, description="Characters shown of the reasons for an answer; longer ones lose their middle.")

    def play(self) -> Play:
        """Openings, revisions, and the vote of the last round."""
        texts = yield from self.open()
        kind = self.kind_of(texts)
        alike = yield from likeness_of(texts, kind)
        verdict = self._held(texts, kind, alike)
        shares = [verdict.agreement]
        for number in range(1, self.rounds):
            if verdict.agreed:
                break
            texts = yield from self.again(self._revisions(texts, number, kind, alike), texts)
            alike = yield from likeness_of(texts, kind)
            verdict = self._held(texts, kind, alike)
            shares.append(verdict.agreement)
        return verdict.model_copy(update={"notes": {"agreement": list(shares)}})

    def _held(self, texts: Sequence[str | None], kind: AnswerKind, alike: Likeness | None) -> Verdict:
        """The vote, ``agreed`` by this pattern's own measure."""
        verdict = self.vote(self.consensus, texts, kind, alike)
        enough = verdict.n >= 2 and 2 * verdict.n > len(texts) and (verdict.agreement or 0.0) >= self.threshold
        return verdict.model_copy(update={"agreed": enough and verdict.answer is not None})

    def _revisions(self, texts: Sequence[str | None], number: int, kind: AnswerKind, alike: Likeness | None) -> list[Turn]:
        summary = self._summary(texts, number, kind, alike)
        return [
            turn_of(self, member, _revision(self.prompt, cut(own, self.peer_chars) if own else None, summary, kind),
                    draw=number * len(self.members) + seat)
            for seat, (member, own) in enumerate(zip(self.members, texts, strict=True))
        ]

    def _summary(self, texts: Sequence[str | None], number: int, kind: AnswerKind, alike: Likeness | None) -> str:
        """Each different answer with its votes and the reasons of one member, drawn by the seed."""
        sides = positions(texts, kind, self.labels, alike)
        votes = Counter(s for s in sides if s is not None)
        told = []
        for place in shuffled(range(len(sides)), self.sampling.seed, self.prompt, number):
            side, text = sides[place], texts[place]
            if side is not None and text is not None and votes[side]:
                answer = f": {cut(side, 100)}" if kind not in ("text", "code") else ""
                told.append(f"{votes.pop(side)} of {len(texts)} answered{answer}\nOne of them wrote: {cut(text, self.peer_chars)}")
        return page(*told)


def _revision(question: str, own: str | None, summary: str, kind: AnswerKind) -> str:
    return page(
        section("Question", question), section("Your answer", own), section("What all members answered", summary),
        "Answer the question again, in full, with your reasons. Change your answer only if a reason above shows that it is wrong.",
        last_line(kind),
    )
