"""Plans: a task split into parts that follow one another as a graph, read from a member's JSON or split by rule."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from symposia_shared.errors import BadInput
from symposia_shared.patterns.artefacts import cut
from symposia_shared.play import check_graph
from symposia_shared.values import Value

#: characters of a part's task that are kept
LONGEST_TASK = 600
#: a plan is looked for in so many characters, from so many places
_MOST_CHARACTERS, _MOST_STARTS = 50_000, 100


class Part(Value):
    """A part of the task: who does it (a place among the workers), and the places of the parts it follows."""

    task: str
    worker: int
    after: tuple[int, ...] = ()


class Plan(Value):
    """The parts, and where they come from: the planner at once, its repair, or the rule that splits when both fail."""

    parts: tuple[Part, ...]
    source: Literal["planned", "repaired", "split"] = "planned"


@dataclass(frozen=True, slots=True)
class Flaw:
    """Why a text is no plan, in words for its author."""

    why: str


_EXAMPLE_TASKS = ("Find the price of one pen", "Find the price of one book", "Add both prices")


def example(*, assigned: bool) -> str:
    """A plan in the form that is asked for; with ``assigned`` it says who does each part."""
    after: tuple[list[int], ...] = ([], [], [1, 2])
    return json.dumps({"subtasks": [
        {"id": n, **({"who": min(n, 2)} if assigned else {}), "task": task, "after": needs}
        for n, (task, needs) in enumerate(zip(_EXAMPLE_TASKS, after, strict=True), 1)
    ]})


def read_plan(text: str | None, *, workers: int, most: int, assigned: bool) -> Plan | Flaw:
    """The plan in ``text``, or what is wrong with it.

    With ``assigned`` each part names its worker from 1; else the workers take the parts in turn.
    """
    raw = _subtasks(text or "")
    if raw is None:
        return Flaw('there is no JSON object with a list of "subtasks"')
    if not 1 <= len(raw) <= most:
        return Flaw(f"there are {len(raw)} subtasks; give 1 to {most}")
    ids = [_id(item) for item in raw]
    if len(set(ids)) < len(ids) or None in ids:
        return Flaw('each subtask needs an "id" of its own: 1, 2, 3')
    places = {name: place for place, name in enumerate(ids)}
    parts: list[Part] = []
    for place, item in enumerate(raw):
        part = _part(item, place, places, workers=workers, assigned=assigned)
        if isinstance(part, Flaw):
            return part
        parts.append(part)
    if {p.task for p in parts} & set(_EXAMPLE_TASKS):
        return Flaw("it repeats the example; plan the task above")
    try:
        check_graph([p.after for p in parts])
    except BadInput:
        return Flaw('subtasks wait for one another in a circle; let each name earlier ones only in "after"')
    return Plan(parts=tuple(parts))


def in_turn(tasks: Sequence[str], *, one_after_another: bool) -> Plan:
    """The rule's own split: one part per worker, each seeing all earlier ones or none."""
    parts = tuple(Part(task=t, worker=i, after=tuple(range(i)) if one_after_another else ()) for i, t in enumerate(tasks))
    return Plan(parts=parts, source="split")


def _part(item: object, place: int, places: Mapping[str | None, int], *, workers: int, assigned: bool) -> Part | Flaw:
    fields = item if isinstance(item, dict) else {}
    name, task = fields.get("id"), fields.get("task")
    if not isinstance(task, str) or not task.strip():
        return Flaw(f'subtask {name} has no "task" in words')
    named = fields.get("after", [])
    if not isinstance(named, list):
        return Flaw(f'"after" of subtask {name} is not a list')
    after = [places.get(_name(n)) for n in named]
    if None in after:
        return Flaw(f'subtask {name} names a subtask in "after" that is not there')
    worker = place % workers
    if assigned:
        who = fields.get("who")
        if not isinstance(who, int) or isinstance(who, bool) or not 1 <= who <= workers:
            return Flaw(f'subtask {name} needs "who": a number from 1 to {workers}')
        worker = who - 1
    plain = task.strip().encode("utf-8", "replace").decode()
    return Part(task=cut(plain, LONGEST_TASK), worker=worker, after=tuple(sorted({a for a in after if a is not None})))


def _subtasks(text: str) -> list[object] | None:
    """The first list of subtasks written as JSON in ``text``."""
    text, decoder, at = text[:_MOST_CHARACTERS], json.JSONDecoder(strict=False), -1
    for _ in range(_MOST_STARTS):
        at = text.find("{", at + 1)
        if at < 0:
            return None
        try:
            found, _end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            continue
        if isinstance(found.get("subtasks"), list):
            listed: list[object] = found["subtasks"]
            return listed
    return None


def _id(item: object) -> str | None:
    return _name(item.get("id")) if isinstance(item, dict) else None


def _name(raw: object) -> str | None:
    return str(raw).strip()[:40] if isinstance(raw, int | str) and not isinstance(raw, bool) and str(raw).strip() else None
