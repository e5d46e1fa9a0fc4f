"""Debate: members answer, read one another, and answer again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from symposia_shared.answers import AnswerKind
from symposia_shared.consensus import ConsensusName
from symposia_shared.jobs import Member, Members
from symposia_shared.patterns.artefacts import cut, page, section
from symposia_shared.patterns.deliberation import Deliberation
from symposia_shared.patterns.judges import choose
from symposia_shared.patterns.members import Beside, Steps, distinct_models, name_of, named_beside, turn_of
from symposia_shared.patterns.peers import flips, last_line, lettered, positions, shuffled
from symposia_shared.play import Play
from symposia_shared.turns import Turn
from symposia_shared.verdicts import Verdict

NO_SCORES = "nobody scores the answers"
JUDGE_DECIDES = "the judge decides, by best_response"


class Debate(Deliberation):
    """Two to four members answer, read one another's answers without names, and answer again; a vote or a judge decides.

    Du et al. 2023, arXiv:2305.14325. Each round every member sees the latest answers of the others in an order of its own
    (seeded by sha256 of the job's seed, prompt, round and seat) and looks for mistakes before it answers anew. It ends
    early when all who spoke agree. A judge is asked twice, the order of the answers swapped, and gives each answer the
    number of times it was picked; the vote decides where it picks none. ``notes`` of the verdict: ``flips``, how many
    members changed their answer in each round after the first; ``picked``, the judge's choices by member.
    """

    kind: Literal["debate"] = "debate"
    members: Members = Field(min_length=2, max_length=4)
    consensus: ConsensusName | None = Field(None, description="Left out: majority_vote, or best_response where there is a judge.")
    judge: Beside | None = Field(None, description="A model outside the debate that picks the best of the last answers.")
    early_stop: bool = Field(True, description="End as soon as all who spoke agree.")

    @field_validator("judge")
    @classmethod
    def _judge_has_a_name(cls, judge: Member | None, made: ValidationInfo) -> Member | None:
        return named_beside(judge, "judge", made.data.get("members", ())) if judge else None

    @model_validator(mode="after")
    def _judge_goes_with_best_response(self) -> Self:
        if self.consensus == "best_response" and self.judge is None:
            raise ValueError(f"consensus is 'best_response', which a debate refuses without a judge: {NO_SCORES}; "
                             "give 'judge' a model outside the debate.")
        if self.judge is not None and self.consensus not in (None, "best_response"):
            raise ValueError(f"consensus is {self.consensus!r}, which a debate refuses with a judge: {JUDGE_DECIDES}; "
                             "leave out 'consensus' or 'judge'.")
        return self

    @property
    def models(self) -> tuple[str, ...]:
        """The members' checkpoints, and the judge's."""
        return distinct_models(*self.members, *self._beside)

    def roles_needing_instruct(self) -> tuple[Member, ...]:
        """All who read others' answers."""
        return (*super().roles_needing_instruct(), *self._beside)

    def play(self) -> Play:
        """Openings, revisions until agreement or the last round, the vote or the judge."""
        texts = yield from self.open()
        kind, changed = self.kind_of(texts), list[int]()
        for number in range(1, self.rounds):
            if self.early_stop and self.unanimous(texts, kind):
                break
            before = texts
            texts = yield from self.again([self._rebuttal(seat, texts, number, kind) for seat in range(len(texts))], texts)
            changed.append(flips(before, texts, kind, self.labels))
        verdict = yield from self._decided(texts, kind)
        return verdict.model_copy(update={"notes": {**verdict.notes, "flips": list(changed)}})

    @property
    def _beside(self) -> tuple[Member, ...]:
        return (self.judge,) if self.judge else ()

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

    def _decided(self, texts: Sequence[str | None], kind: AnswerKind) -> Steps[Verdict]:
        if self.judge is None:
            return self.vote(self.consensus or "majority_vote", texts, kind)
        sides = positions(texts, kind, self.labels)
        first = {side: place for place, side in reversed(list(enumerate(sides))) if side is not None}
        places = sorted(first.values())
        picks: list[int | None] = []
        if len(places) > 1:
            picks = yield from choose(self, self.judge, [texts[p] or "" for p in places], most_chars=self.peer_chars)
        chosen = [places[p] for p in picks if p is not None]
        return self._judged(texts, kind, sides, chosen, self.judge)

    def _judged(
        self, texts: Sequence[str | None], kind: AnswerKind, sides: Sequence[str | None], chosen: Sequence[int], judge: Member,
    ) -> Verdict:
        """Each answer scored by how often the judge chose a member who gave it."""
        picked = [sides[place] for place in chosen]
        ballots = self.ballots(texts)
        if picked:
            ballots = [b.model_copy(update={"score": float(picked.count(side))}) for b, side in zip(ballots, sides, strict=True)]
        verdict = self.tally("best_response", ballots, kind)
        return verdict.model_copy(update={
            "rule": f"{verdict.rule}; scorer: {name_of(judge)}, asked twice with the order swapped",
            "notes": {"picked": [name_of(self.members[place]) for place in chosen]},
        })
