"""What is refused at submit by what the placed checkpoints can do. Pure: ``placed`` is the ledger's word on each.

The ledger itself compares what a job ``needs`` with each checkpoint's capabilities, in the script that records it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from symposia_shared.catalogue import countable_bytes
from symposia_shared.errors import BadInput
from symposia_shared.jobs import TEXT, Collaboration, Job, Member, SingleTurn, needs_of
from symposia_shared.turns import Turn

#: checkpoint → what its pool says of it
Placed = Mapping[str, Mapping[str, Any]]

#: a capability → the field that asks for it, and what it is called in a refusal
_ASKED: Mapping[str, tuple[str, str]] = {
    "generate|seq2seq": ("want", "write text"), "infill": ("suffix", "fill a hole"), "embed": ("want", "embed texts"),
    "score": ("want", "score a text"), "json_schema": ("sampling.form", "keep to a JSON schema"), "choice": ("sampling.form", "choose among options"),
    "regex": ("sampling.form", "keep to a regular expression"),
}


def needs(job: Job) -> tuple[str, ...]:
    """What each checkpoint of a job must be able to do; ``a|b`` where either will do."""
    if isinstance(job, SingleTurn):
        return needs_of(job.turn)
    form = job.sampling.form
    return (TEXT, *(() if form is None else (form.kind,)))


def unable(model: str, need: str, placed: Placed) -> BadInput:
    """The refusal of a checkpoint that cannot do what is asked of it: an encoder asked for text, a generator asked for vectors, a form
    that its engine does not enforce."""
    field, what = _ASKED.get(need, ("model", need))
    able = ", ".join(sorted(m for m, p in placed.items() if set(need.split("|")) & set(p.get("capabilities") or ()))) or "none"
    return BadInput(f"{model} cannot {what} where it is served.", field=field, value=model, remedy=f"Ask one that can (served: {able}).")


def check_roles(job: Job, placed: Callable[[], Placed]) -> None:
    """Refuse members that are to plan, judge or criticise with a checkpoint that was not tuned to follow instructions."""
    needing: Callable[[], tuple[Member, ...]] | None = getattr(job, "roles_needing_instruct", None)
    asked = [m for m in needing() if not m.model.startswith("test/")] if needing is not None else []
    places = placed() if asked else {}
    for member in asked:
        if places.get(member.model, {}).get("instruct") is False:
            able = ", ".join(sorted(m for m, place in places.items() if place.get("instruct"))) or "none"
            raise BadInput(f"{member.name or member.model} has a part in this {job.name} that follows instructions, and {member.model} is a base model.",
                           field="members", value=member.model, remedy=f"Give that part to one that follows instructions (served: {able}).")


def sized(job: Job, placed: Callable[[], Placed]) -> Job:
    """The job with its members' sizes, where a weighted vote has nothing else to count by."""
    if not isinstance(job, Collaboration) or getattr(job, "consensus", None) != "weighted_vote" or getattr(job, "weights", None) is not None:
        return job
    places = placed()
    members = [m.model_copy(update={"params_b": places.get(m.model, {}).get("params_b") or None}) if m.params_b is None else m for m in job.members]
    return job.model_copy(update={"members": tuple(members)})


def prompt_bytes(job: Job) -> int:
    """Bytes of the job's longest prompt that surely become part of a token; an embedding's texts are each a prompt of their own."""
    if isinstance(job, SingleTurn):
        return _turn_bytes(job.turn)
    return countable_bytes(job.prompt) if isinstance(job, Collaboration) else 0


def _turn_bytes(turn: Turn) -> int:
    sizes: Sequence[int] = [countable_bytes(m.content) for m in turn.messages]
    return max(sizes) if turn.want == "embedding" else sum(sizes)
