"""What was decided, and who voted how."""

from __future__ import annotations

from pydantic import Field, JsonValue

from symposia_shared.values import Value


class Ballot(Value):
    """One member's answer as text, before it is read."""

    member: str
    model: str = ""
    #: None: the member abstained
    text: str | None
    #: billions of parameters, where known
    params_b: float | None = None
    #: a scorer's figure, higher is better, where there is one
    score: float | None = None


class Vote(Value):
    """One member's answer in canonical form; None is "no answer", which votes for nothing."""

    member: str
    model: str = ""
    extracted: str | None = None
    #: the answer it counts for, where that is written otherwise: ``9`` of ``"9"`` (None: ``extracted`` itself)
    counted_for: str | None = None
    weight: float = 1.0

    @property
    def answer(self) -> str | None:
        """What it votes for, in the words of ``Verdict.answer``."""
        return self.counted_for if self.counted_for is not None else self.extracted


class Verdict(Value):
    """The answer of a job.

    ``agreement`` is the winner's share of the ``n`` votes that had an answer; both it and ``agreed`` are None
    where nobody voted (a single prompt, a pipeline).
    """

    #: the canonical answer that won (of free text: the whole text of the member it is taken from); None: no consensus, or
    #: nothing is said (an embedding: its vectors are in the reply)
    answer: str | None
    #: the member whose reply stands for the verdict
    spoken_by: str | None = None
    agreed: bool | None = None
    agreement: float | None = Field(None, ge=0.0, le=1.0)
    n: int = Field(0, ge=0)
    #: the consensus algorithm that decided, by name
    rule: str | None = None
    #: how a tie was broken, when there was one
    tie: str | None = None
    votes: tuple[Vote, ...] = ()
    #: answers that lost, most votes first
    dissent: tuple[str, ...] = ()
    #: what else the pattern reports, by its own words, such as a debate's ``flips``
    notes: dict[str, JsonValue] = Field(default_factory=dict)
