"""Ensemble: all members answer independently, and a vote decides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from symposia_shared.answers import AnswerKind, kind_of
from symposia_shared.consensus import ConsensusName, Weights, decide, majority_settled
from symposia_shared.jobs import Collaboration, Members
from symposia_shared.play import Play, Round
from symposia_shared.prompts import Sampling, user
from symposia_shared.turns import Reply, Turn
from symposia_shared.verdicts import Ballot


class Ensemble(Collaboration):
    """Three to twenty members answer the same prompt without seeing one another; a consensus over their answers is the verdict.

    ``best_response`` scores an answer by the mean log-probability of its tokens, where the engine reports one.

    With one checkpoint in several seats this is self-consistency (Wang et al. 2023, arXiv:2203.11171): each seat draws with a
    seed of its own. The round stops early once no missing answer can change the verdict.
    """

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
    sampling: Sampling = Sampling(temperature=0.7)

    def play(self) -> Play:
        """One round, one vote."""
        turns = tuple(
            Turn(member=m.name or m.model, model=m.model, messages=user(self.prompt, system=m.role), sampling=self.sampling.reseeded(seat))
            for seat, m in enumerate(self.members)
        )
        replies = yield Round(
            turns=turns, settled=self._settled if self.early_stop else None, settled_from=len(turns) // 2 + 1,
            quorum=self.quorum or 1, close_at=self.quorum,
        )
        verdict = decide(self.consensus, self._ballots(replies), kind=self.answer_kind, weights=self.weights, labels=self.labels, question=self.prompt)
        scored = any(r.kind == "completion" and r.logprob_mean is not None for r in replies)
        if self.consensus == "best_response" and scored and verdict.rule:
            verdict = verdict.model_copy(update={"rule": f"{verdict.rule}, scored by mean log-probability"})
        return verdict

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
        texts = [b.text for b in ballots if b.text is not None]
        kind = kind_of(texts, question=self.prompt, labels=self.labels) if self.answer_kind == "auto" else self.answer_kind
        if self.consensus != "majority_vote" or kind in ("text", "code"):
            return False
        votes = decide(self.consensus, ballots, kind=kind, labels=self.labels).votes
        return majority_settled(votes, missing)
