"""Which consensus algorithms a pattern admits, and what is said to who asks for another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, get_args

from pydantic import model_validator

from symposia_shared.consensus import ConsensusName
from symposia_shared.jobs import Collaboration

NAMES: tuple[ConsensusName, ...] = get_args(ConsensusName)


def none_votes(why: str) -> dict[ConsensusName, str]:
    """Every algorithm refused for one reason."""
    return dict.fromkeys(NAMES, why)


class Selective(Collaboration):
    """A collaboration that refuses some consensus algorithms, and says why."""

    #: algorithm → why it is refused, whatever else the job says
    refused: ClassVar[Mapping[ConsensusName, str]] = {}

    @model_validator(mode="before")
    @classmethod
    def _admits_its_consensus(cls, raw: Any) -> Any:
        asked = raw.get("consensus") if isinstance(raw, dict) else None
        why = {str(name): reason for name, reason in cls.refused.items()}.get(asked) if isinstance(asked, str) else None
        if why is not None:
            others = [name for name in NAMES if name not in cls.refused]
            remedy = f"use {', '.join(others)}" if others else "leave 'consensus' out"
            raise ValueError(f"consensus is {asked!r}, which this pattern refuses: {why}; {remedy}.")
        return raw
