"""A collaboration written as a model's name.

    PATTERN:MEMBER,MEMBER[,MEMBER ...][;OPTION=VALUE ...]
    debate:smollm2-135m,gemma3-270m;rounds=2;consensus=majority_vote

A member is ``MODEL`` or ``NAME=MODEL``. An option is a field of the pattern (``symposia schema PATTERN``); a value that begins with ``[``
or ``{`` is JSON, any other is read as the field's type. ``,`` ``;`` ``=`` and ``%`` within a name, model or value are percent-encoded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, unquote

from pydantic import Field, JsonValue

from symposia_shared.errors import BadInput
from symposia_shared.jobs import Collaboration, Member
from symposia_shared.patterns import OURS, kind_of, patterns
from symposia_shared.values import Value

#: characters of a collaboration's name at most
LONGEST = 8_000
#: fields of a job that are no options of a team: they come with the question
NOT_OPTIONS = frozenset({"kind", "prompt", "members", "sampling", "tags", "priority", "deadline_s"})

#: the name of a saved team
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

_PATTERN = re.compile(r"([a-z][a-z0-9_-]{0,63}):", re.IGNORECASE)
#: what stays as it is in a name: all but the marks of the form itself, and what no URL holds
_SAFE = "/:|[]{}\"'!?+*()@&$#^~`<>\\ .-_"


class Team(Value):
    """A pattern, its members and its options: all of a collaboration but the question."""

    pattern: str
    members: tuple[Member, ...] = Field(min_length=1, max_length=64)
    options: dict[str, JsonValue] = Field(default_factory=dict)

    def job(self, prompt: str, **more: Any) -> Collaboration:
        """The job that puts ``prompt`` to this team. Raises BadInput as the pattern does."""
        cls = pattern_named(self.pattern)
        for name in self.options:
            if name in NOT_OPTIONS:
                raise BadInput(f"{name!r} is no option of a team.", field=name, value=self.options[name],
                               remedy="It comes with the question: leave it out here.")
        return cls.parse({**self.options, **more, "kind": kind_of(cls), "prompt": prompt, "members": [m.model_dump() for m in self.members]})

    def checked(self) -> Team:
        """This team if a question could be put to it. Raises BadInput."""
        self.job("?")
        return self

    @property
    def name(self) -> str:
        """The team in the form ``read_team`` reads. Roles and sizes of members, which that form cannot say, are left out."""
        members = ",".join((f"{_quoted(m.name)}=" if m.name else "") + _quoted(m.model) for m in self.members)
        options = "".join(f";{name}={_quoted(_written(value))}" for name, value in self.options.items())
        return f"{self.pattern}:{members}{options}"


def is_team(model: str) -> bool:
    """Whether a model's name has the form of a collaboration: a word and a colon, which no checkpoint's name has."""
    return _PATTERN.match(model) is not None


def read_team(text: str) -> Team:
    """The team a name describes. Raises BadInput naming what is wrong with which part."""
    found = _PATTERN.match(text)
    if found is None:
        raise BadInput(f"{text[:80]!r} is not the name of a collaboration.", field="model", value=text,
                       remedy="Write PATTERN:MODEL,MODEL;OPTION=VALUE, such as debate:smollm2-135m,gemma3-270m;rounds=2.")
    if len(text) > LONGEST:
        raise BadInput(f"the name of this collaboration has {len(text):,} characters; at most {LONGEST:,} are read.", field="model",
                       remedy="Save it under a name (PUT /v1/teams/NAME).")
    pattern = found[1].lower().replace("-", "_")
    pattern_named(pattern)
    seats, *options = text[found.end():].split(";")
    members = tuple(_member(seat, at) for at, seat in enumerate(seats.split(","))) if seats else ()
    if not members:
        raise BadInput(f"{text[:80]!r} names no members.", field="members", value=text, remedy=f"Write {pattern}:MODEL,MODEL.")
    return Team.parse({"pattern": pattern, "members": [m.model_dump() for m in members], "options": _options(options)}).checked()


def pattern_named(name: str) -> type[Collaboration]:
    """The pattern of this name. Raises BadInput."""
    for ours in OURS:
        if kind_of(ours) == name:
            return ours
    known = patterns()
    if name not in known:
        raise BadInput(f"there is no pattern {name!r}.", field="model", value=name, remedy=f"Use {', '.join(sorted(known))}.")
    return known[name]


def _member(text: str, at: int) -> Member:
    if not text:
        raise BadInput(f"member {at + 1} is empty.", field="members", value=text, remedy="Name a model between two commas.")
    head, sign, tail = text.partition("=")
    named = {"name": _plain(head), "model": _plain(tail)} if sign and not text.startswith("test/") else {"model": _plain(text)}
    return Member.parse(named)


def _options(parts: list[str]) -> Mapping[str, JsonValue]:
    found: dict[str, JsonValue] = {}
    for part in parts:
        name, sign, value = part.partition("=")
        name = name.replace("-", "_")
        if not sign or not name:
            raise BadInput(f"the option {part[:80]!r} has no value.", field="model", value=part, remedy="Write OPTION=VALUE.")
        if name in found:
            raise BadInput(f"the option {name!r} is given twice.", field=name, value=part, remedy="Give it once.")
        found[name] = _value(name, _plain(value))
    return found


def _value(name: str, text: str) -> JsonValue:
    if not text.startswith(("[", "{")):
        return text
    try:
        value: JsonValue = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"the option {name!r} is not JSON, although it begins like it: {error}.", field=name, value=text,
                       remedy="Percent-encode a ';' within it.") from None
    return value


def _plain(text: str) -> str:
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise BadInput(f"{text[:80]!r} is not percent-encoded UTF-8.", field="model", value=text, remedy="Encode it anew.") from None


def _quoted(text: str) -> str:
    return quote(text, safe=_SAFE)


def _written(value: JsonValue) -> str:
    return value if isinstance(value, str) else json.dumps(value)
