"""Adversarial: a proposer answers, an attacker must prove it wrong, a checker rules, the proposer repairs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

from pydantic import Field, JsonValue, ValidationInfo, field_validator, model_validator

from symposia_shared.answers import extract
from symposia_shared.consensus import ConsensusName
from symposia_shared.jobs import Member, Members
from symposia_shared.patterns.artefacts import cut, page, section, spoken
from symposia_shared.patterns.checks import PYTHON, asserts_in, python_check, ruling_of
from symposia_shared.patterns.judges import upheld
from symposia_shared.patterns.members import Beside, Steps, distinct_models, name_of, named_beside, require_quorum, turn_of
from symposia_shared.patterns.refusals import Selective, none_votes
from symposia_shared.patterns.sums import wrong_sums
from symposia_shared.play import Play, Round
from symposia_shared.verdicts import Verdict

Checker = Literal["auto", "python", "arithmetic", "judge"]

_CONCEDES = re.compile(r"\W{0,6}no (?:mistakes?|failing test)\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Attack:
    """An attack and what came of it; ``by`` is the checker that ruled, None where none could."""

    text: str
    proven: bool
    by: str | None
    #: what the checker found
    proof: str = ""


class Adversarial(Selective):
    """One member proposes, the other attacks with counter-examples or failing tests; what a checker upholds must be repaired.

    The first member proposes, the second attacks. An attack counts only if it is proven: a failing ``assert`` of the
    proposed code is run (a ``check/python`` turn), a calculation quoted from the answer is worked out again, anything else
    goes to the judge, asked twice, where there is one. An unproven attack has failed. The answer stands when it has
    survived ``attacks`` of them since its last repair; ``repairs`` are made at most. ``quorum`` 2: the attacker too must have
    answered in the end. ``notes`` of the verdict: ``stood``, ``survived``, ``repaired`` and the ``attacks``.
    Khan et al. 2024, arXiv:2402.06782, on why an opponent helps a weaker judge; CodeT (Chen et al. 2022, arXiv:2207.10397)
    on tests that models write.
    """

    refused: ClassVar[Mapping[ConsensusName, str]] = none_votes("nobody votes, the answer is the one that the attacks leave standing")

    kind: Literal["adversarial"] = "adversarial"
    members: Members = Field(min_length=2, max_length=2)
    attacks: int = Field(2, ge=1, le=8, description="Attacks that an answer must survive to stand.")
    repairs: int = Field(2, ge=0, le=8, description="Repairs at most.")
    check: Checker = Field("auto", description="Who rules: auto takes python for code, arithmetic where a calculation is quoted, then the judge.")
    judge: Beside | None = Field(None, description="A model beside the two that rules where nothing can be run or worked out.")
    answer_chars: int = Field(6000, ge=100, le=1_000_000, description="Characters shown of an answer; a longer one loses its middle.")

    @field_validator("judge")
    @classmethod
    def _judge_has_a_name(cls, judge: Member | None, made: ValidationInfo) -> Member | None:
        return named_beside(judge, "judge", made.data.get("members", ())) if judge else None

    @model_validator(mode="after")
    def _a_judge_is_there(self) -> Self:
        if self.check == "judge" and self.judge is None:
            raise ValueError("check is 'judge', but there is none; give 'judge' a model beside the two, or choose another check.")
        return self

    @property
    def models(self) -> tuple[str, ...]:
        """The two checkpoints, and the judge's."""
        return distinct_models(*self.members, *((self.judge,) if self.judge else ()))

    def roles_needing_instruct(self) -> tuple[Member, ...]:
        """All: who proposes repairs too."""
        return (*self.members, *((self.judge,) if self.judge else ()))

    def play(self) -> Play:
        """The proposal; then attack, ruling and repair, at most (repairs + 1) x attacks times."""
        proposer, attacker = self.members
        (reply,) = yield Round(turns=(turn_of(self, proposer, self.prompt, draw=0),), quorum=1)
        answer = spoken(reply) or ""
        made: list[Attack] = []
        survived = repaired = silent = 0
        refuted = False
        for number in range((self.repairs + 1) * self.attacks):
            attack = yield from self._attacked(attacker, answer, made[len(made) - survived:], draw=2 * number + 1)
            if attack is None:
                silent += 1
            else:
                made.append(attack)
                survived = 0 if attack.proven else survived + 1
            if attack is not None and attack.proven:
                better = (yield from self._repair(proposer, answer, attack, draw=2 * number + 2)) if repaired < self.repairs else None
                if better is None:
                    refuted = True
                    break
                answer, repaired = better, repaired + 1
            elif survived == self.attacks or silent == self.attacks:
                break
        require_quorum(self, {name_of(proposer), *([name_of(attacker)] if made else [])})
        return Verdict(answer=answer, spoken_by=name_of(proposer), notes={
            "stood": not refuted and survived == self.attacks, "survived": survived, "repaired": repaired, "attacks": [_told(a) for a in made],
        })

    def _attacked(self, attacker: Member, answer: str, failed: Sequence[Attack], *, draw: int) -> Steps[Attack | None]:
        """An attack with its ruling; None where the attacker said nothing."""
        code = extract(answer, "code") if self.check in ("auto", "python") else None
        (reply,) = yield Round(turns=(turn_of(self, attacker, self._challenge(answer, code, failed), draw=draw),), quorum=0)
        text = spoken(reply)
        if text is None:
            return None
        if _CONCEDES.match(text):
            return Attack(text, False, None)
        tests = asserts_in(text, code) if code else []
        if code and tests:
            (reply,) = yield Round(turns=(python_check(code, tests),), quorum=0)
            ruling = ruling_of(reply)
            if ruling is not None and ruling.ran:
                return Attack(text, not ruling.passed, PYTHON, proof=page("\n".join(tests), ruling.detail))
        wrong = sorted(set(wrong_sums(text)) & set(wrong_sums(answer))) if self.check in ("auto", "arithmetic") else []
        if wrong:
            return Attack(text, True, "arithmetic", proof=f"This calculation is wrong: {wrong[0]}")
        if self.judge is not None and self.check in ("auto", "judge"):
            proven = yield from upheld(self, self.judge, cut(answer, self.answer_chars), cut(text, 1500))
            return Attack(text, proven, name_of(self.judge), proof=text)
        return Attack(text, False, None)

    def _challenge(self, answer: str, code: str | None, failed: Sequence[Attack]) -> str:
        asked = (
            "Find one input for which this code is wrong. Write one line of Python that fails because of it, like this:\n"
            "assert add(2, 2) == 4\nIf there is none, write: No failing test"
            if code else
            "Find one mistake in this answer and prove it. Copy a wrong calculation exactly as it stands there, like this:\n"
            "Wrong: 2 + 2 = 5\nOr give a counter-example: one concrete case in which the answer fails. If there is none, write: No mistake"
        )
        tried = "\n".join(f"- {cut(a.text, 200)}" for a in failed)
        return page(section("Task", self.prompt), section("Answer", cut(answer, self.answer_chars)),
                    section("Objections that failed; find another", tried), asked)

    def _repair(self, proposer: Member, answer: str, attack: Attack, *, draw: int) -> Steps[str | None]:
        """The repaired answer; None where the proposer has none."""
        prompt = page(
            section("Task", self.prompt), section("Your answer", cut(answer, self.answer_chars)),
            section("It was proven wrong", cut(attack.proof, 1500)), "Write the corrected answer, in full, and nothing else.",
        )
        (reply,) = yield Round(turns=(turn_of(self, proposer, prompt, draw=draw),), quorum=0)
        return spoken(reply)


def _told(attack: Attack) -> dict[str, JsonValue]:
    return {"proven": attack.proven, "by": attack.by}
