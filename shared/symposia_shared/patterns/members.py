"""Who is asked: the turn of a member, and members beside the others, such as a judge."""

from __future__ import annotations

from collections.abc import Collection, Generator, Sequence
from typing import Annotated, TypeAlias, TypeVar

from pydantic import BeforeValidator

from symposia_shared.errors import NoQuorum
from symposia_shared.jobs import Collaboration, Member
from symposia_shared.play import Round
from symposia_shared.prompts import user
from symposia_shared.turns import Reply, Turn

T = TypeVar("T")

#: a part of a play, which comes to a T
Steps: TypeAlias = Generator[Round | Sequence[Turn], Sequence[Reply], T]


def _from_model(raw: object) -> object:
    return {"model": raw} if isinstance(raw, str) else raw


#: a member who sits beside the others; its model's id is enough
Beside = Annotated[Member, BeforeValidator(_from_model)]


def name_of(member: Member) -> str:
    """The member's name within its job."""
    return member.name or member.model


def named_beside(member: Member, name: str, others: Sequence[Member]) -> Member:
    """``member`` under its own name, or ``name`` where it has none. Raises ValueError where one of ``others`` has that name."""
    found = member if member.name else member.model_copy(update={"name": name})
    if found.name in {m.name for m in others}:
        raise ValueError(f"the {name} and a member are both called {found.name!r}; give the {name} another name.")
    return found


def turn_of(job: Collaboration, member: Member, text: str, *, draw: int) -> Turn:
    """``member`` asked ``text``, its role before it as a system message; ``draw`` tells the seeds of a job's turns apart."""
    return Turn(member=name_of(member), model=member.model, messages=user(text, system=member.role), sampling=job.sampling.reseeded(draw))


def sober_turn_of(job: Collaboration, member: Member, text: str) -> Turn:
    """As ``turn_of``, greedy: for planning, judging and scoring, where a draw would only add noise."""
    sober = job.sampling.model_copy(update={"temperature": 0.0, "seed": None})
    return Turn(member=name_of(member), model=member.model, messages=user(text, system=member.role), sampling=sober)


def distinct_models(*members: Member) -> tuple[str, ...]:
    """The checkpoints of ``members``, each once, in order of first use."""
    return tuple(dict.fromkeys(m.model for m in members))


def require_quorum(job: Collaboration, spoke: Collection[str]) -> None:
    """Raise NoQuorum where fewer members than the job's quorum answered in all its rounds: for patterns that ask one at a time."""
    if len(spoke) < (job.quorum or 1):
        raise NoQuorum(f"this {job.name} needed {job.quorum} of its {len(job.members)} members to answer, and {len(spoke)} did: "
                       f"{', '.join(sorted(spoke))}. Lower 'quorum', or look in the transcript for why the others did not.")
