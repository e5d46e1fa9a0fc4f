"""A prompt with the names of columns in braces: ``Which mood has {review}?``."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from symposia_shared.errors import BadInput


@dataclass(frozen=True, slots=True)
class Template:
    """Texts and columns in turn. Braces that are meant as such are doubled."""

    parts: tuple[tuple[str, str | None], ...]

    @staticmethod
    def of(text: str) -> Template:
        """The template in a text. Raises BadInput."""
        try:
            found = tuple((literal, name) for literal, name, spec, how in string.Formatter().parse(text) if _plain(text, name, spec, how))
        except ValueError as error:
            raise BadInput(f"the template cannot be read: {error}.", field="template", value=text, remedy="Double a brace that is meant as such.") from None
        return Template(found)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns it names, each once."""
        return tuple(dict.fromkeys(name for _, name in self.parts if name is not None))

    def check(self, columns: Sequence[str]) -> None:
        """Raises BadInput for a column that is not there."""
        for name in self.columns:
            if name not in columns:
                raise BadInput(f"the template names a column {name!r}, and there is none.", field="template", value=name,
                               remedy=f"Use {', '.join(columns) or 'a table with columns'}.")

    def of_row(self, row: Mapping[str, Any]) -> str:
        """The prompt for a row; a cell without a value says nothing."""
        return "".join(literal + ("" if name is None or row.get(name) is None else str(row[name])) for literal, name in self.parts)


def _plain(text: str, name: str | None, spec: str | None, how: str | None) -> bool:
    if how or spec or (name is not None and not name.strip()):
        raise BadInput(f"the template has {{{name}{'!' + how if how else ''}{':' + spec if spec else ''}}}; only names of columns are read.",
                       field="template", value=text, remedy="Write {COLUMN}.")
    return True
