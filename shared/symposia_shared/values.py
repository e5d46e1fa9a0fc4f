"""The one base of every value: frozen, validated when made, JSON in and out."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, ValidationError, model_serializer

from symposia_shared.errors import BadInput


class Value(BaseModel):
    """A frozen value; a field it does not know is an error."""

    # a length, any length, has pydantic look at a text's characters: half of a surrogate pair can be held in a str, but never be written
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, str_min_length=0)

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> Self:
        """The value in ``raw``. Raises BadInput naming field, value and remedy."""
        try:
            return cls.model_validate(raw)
        except ValidationError as error:
            raise bad_input(cls, error) from None

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """The value in a JSON text. Raises BadInput."""
        try:
            raw = json.loads(text)
        except ValueError as error:
            raise BadInput(f"this is not JSON: {error}.", field=cls.__name__, remedy="Give one JSON object.") from None
        if not isinstance(raw, dict):
            raise BadInput(f"this is a JSON {type(raw).__name__}, not an object.", field=cls.__name__, remedy="Give one JSON object.")
        return cls.parse(raw)

    def to_json(self) -> str:
        """Compact JSON, fields that are at their default left out, keys in the order of the class."""
        return self.model_dump_json(exclude_defaults=True)

    def canonical(self) -> bytes:
        """The one byte form of this value, for digests: all fields, sorted keys."""
        return canonical_json(self.model_dump(mode="json"))


class Kinded(Value):
    """A value that says in JSON what it is: its ``kind`` is written even where defaults are left out."""

    @model_serializer(mode="wrap")
    def _with_kind(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {"kind": getattr(self, "kind", type(self).__name__), **plain(self)}


def canonical_json(value: object) -> bytes:
    """UTF-8 JSON with sorted keys and no spaces: equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def bad_input(cls: type[BaseModel], error: ValidationError) -> BadInput:
    """The first fault of ``error`` as a BadInput: field, value, remedy."""
    fault = error.errors(include_url=False)[0]
    field = ".".join(str(part) for part in fault["loc"] if not str(part).startswith("function-")) or cls.__name__
    value = fault.get("input")
    shown = repr(value)
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    kind = fault["type"]
    if kind == "missing":
        return BadInput(f"{cls.__name__}.{field} is missing.", field=field, remedy=f"Add {field!r}.")
    if kind == "extra_forbidden":
        near = difflib.get_close_matches(field.rsplit(".", 1)[-1], list(cls.model_fields), n=1)
        hint = f"Did you mean {near[0]!r}?" if near else f"Remove it; the fields are {_list(cls.model_fields)}."
        return BadInput(f"{cls.__name__} has no field {field!r} (given {shown}).", field=field, value=value, remedy=hint)
    message = fault["msg"].removeprefix("Value error, ")
    if kind == "value_error":
        return BadInput(f"{cls.__name__}.{field}: {message}", field=field, value=value)
    remedy = f"Give {field!r} a value for which this holds: {message[0].lower()}{message[1:]}."
    return BadInput(f"{cls.__name__}.{field} is {shown}: {message}.", field=field, value=value, remedy=remedy)


def _list(names: Mapping[str, object] | Sequence[str]) -> str:
    return ", ".join(names)
