"""Ensemble: all members answer independently, and a vote decides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field

from symposia_shared.answers import AnswerKind, kind_of
from symposia_shared.consensus import ConsensusName, Likeness, Weights, decide, majority_settled
from symposia_shared.jobs import Members
from symposia_shared.patterns.likeness import likeness_of
from symposia_shared.patterns.peers import positions
from symposia_shared.patterns.scorers import Scored, by_logprob, kind_scored
from symposia_shared.play import Play, Round
from symposia_shared.prompts import Sampling, user
from symposia_shared.turns import Reply, Turn
from symposia_shared.verdicts import Ballot, Verdict


class Ensemble(Scored):
    """Three to twenty members answer the same prompt without seeing one another; a consensus over their answers is the verdict.

    ``best_response`` scores an answer by the ``tests`` its code passes, where there are tests and all can be run; else by how
    often a ``judge`` picks it; else by the mean log-probability of its tokens, where the engine reports one. The scorer stands
    in the verdict's rule; ``notes``: ``passed`` or ``picked``. Free texts are compared by a recorded ``check/likeness``.

    With one checkpoint in several seats this is self-consistency (Wang et al. 2023, arXiv:2203.11171): each seat draws with a
    seed of its own. The round stops early once no missing answer can change the verdict.
    """

    #: 2: free texts are compared by a recorded turn
    version: ClassVar[int] = 2

    kind: Literal["ensemble"] = "ensemble"
    members: Members = Field(min_length=3, max_length=20)
    consensus: ConsensusName = "majority_vote"
    #: what is voted on: the number, letter, literal ... in each answer, or the whole text
    answer_kind: AnswerKind = "auto"
    #: the admitted answers of kind ``label``
    labels: tuple[str, ...] = ()
    #: measured accuracies, as `symposia weights fit` writes them: what weighted_vote counts by, and what breaks others' ties
    weights: Weights | None = None
    early_stop: bool = True
    peer_chars: int = Field(1200, ge=100, le=100_000, description="Characters of an answer that the judge is shown; a longer one loses its middle.")
    sampling: Sampling = Sampling(temperature=0.7)

    def play(self) -> Play:
        """One round of answers; what it takes to compare or to score them; one vote."""
        turns = tuple(
            Turn(member=m.name or m.model, model=m.model, messages=user(self.prompt, system=m.role), sampling=self.sampling.reseeded(seat))
            for seat, m in enumerate(self.members)
        )
        replies = yield Round(
            turns=turns, settled=self._settled if self.early_stop else None, settled_from=len(turns) // 2 + 1,
            quorum=self.quorum or 1, close_at=self.quorum,
        )
        ballots = self._ballots(replies)
        kind, texts = self._kind(ballots), [b.text for b in ballots]
        alike = yield from likeness_of(texts, kind)
        if self.consensus != "best_response":
            return self._decided(ballots, kind, alike)
        scores = yield from self.scores(ballots, positions(texts, kind, self.labels, alike), most_chars=self.peer_chars)
        scores = scores or by_logprob(ballots)
        verdict = self._decided(scores.on(ballots) if scores else ballots, kind, alike)
        return scores.named_in(verdict) if scores else verdict

    def _decided(self, ballots: Sequence[Ballot], kind: AnswerKind, alike: Likeness | None) -> Verdict:
        return decide(self.consensus, ballots, kind=kind, weights=self.weights, labels=self.labels, likeness=alike)

    def _kind(self, ballots: Sequence[Ballot]) -> AnswerKind:
        kind = kind_scored(self.answer_kind, self.tests)
        return kind_of([b.text for b in ballots if b.text is not None], question=self.prompt, labels=self.labels) if kind == "auto" else kind

    def _ballots(self, replies: Sequence[Reply | None]) -> list[Ballot]:
        return [
            Ballot(member=m.name or m.model, model=m.model, text=r.text, params_b=m.params_b, score=r.logprob_mean) if r is not None and r.kind == "completion"
            else Ballot(member=m.name or m.model, model=m.model, text=None)
            for m, r in zip(self.members, replies, strict=True)
        ]

    def _settled(self, replies: Sequence[Reply | None]) -> bool:
        """Only a majority over answers that are compared exactly is settled early: of texts a later one may still change what is alike."""
        ballots = self._ballots(replies)
        missing = sum(1 for r in replies if r is None)
        kind = self._kind(ballots)
        if self.consensus != "majority_vote" or kind in ("text", "code"):
            return False
        votes = decide(self.consensus, ballots, kind=kind, labels=self.labels).votes
        return majority_settled(votes, missing)
