"""Entries of a file into the model store's catalogue: each validated, all that are wrong told at once, none registered unless all are right."""

from __future__ import annotations

import json
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from symposia_shared import catalogue
from symposia_shared.catalogue import Entry
from symposia_shared.errors import BadInput, UnknownModel
from symposia_shared.kinds import WHY_NOT
from symposia_worker.models.index import Index

#: faults that are told of one file
_MOST_TOLD = 20


@dataclass(frozen=True, slots=True)
class Read:
    """What a file of entries holds."""

    entries: tuple[Entry, ...]
    #: a sentence for each that is not loadable here, or not allowed, by id
    refused: Mapping[str, str]


def register(index: Index, file: Path, *, allow_non_commercial: bool) -> Read:
    """Register the entries of ``file``. Raises BadInput naming each wrong entry, its field and value, and the remedy; then nothing is registered."""
    read = read_entries(file, allow_non_commercial=allow_non_commercial)
    index.register(read.entries)
    return read


def read_entries(file: Path, *, allow_non_commercial: bool) -> Read:
    """The entries of a file in the catalogue's form: TOML (``[[checkpoint]]``), a JSON array, or JSON lines. Raises BadInput, UnknownModel."""
    entries: dict[str, Entry] = {}
    refused: dict[str, str] = {}
    faults: list[str] = []
    taken: Counter[str] = Counter()
    for number, raw in enumerate(_rows(file), 1):
        name = str(raw.get("id", "")) if isinstance(raw, dict) else ""
        try:
            entry = _entry(raw, name, refused, allow_non_commercial=allow_non_commercial)
            if entry is not None:
                _unique(entry, taken)
                entries[entry.id] = entry
        except BadInput as error:
            faults.append(f"entry {number}{f' ({name})' if name else ''}: {error}")
    if faults:
        more = f"\n... and {len(faults) - _MOST_TOLD} more" if len(faults) > _MOST_TOLD else ""
        raise BadInput(f"{file} has {len(faults)} wrong entries, and none is registered:\n" + "\n".join(faults[:_MOST_TOLD]) + more, field="entries",
                       value=str(file))
    return Read(tuple(entries.values()), refused)


def _entry(raw: object, name: str, refused: dict[str, str], *, allow_non_commercial: bool) -> Entry | None:
    """The entry, or None where its kind or its licence is refused, which is noted. Raises BadInput."""
    if not isinstance(raw, dict):
        raise BadInput(f"{str(raw)[:60]!r} is no entry.", field="entry", value=raw, remedy="Give an object with the fields of an entry.")
    kind = raw.get("kind", "text")
    if name and kind in WHY_NOT:  # such an entry need not have a source, or parameters
        refused[name] = f"{name} is of the kind {kind}: {' '.join(WHY_NOT[kind])}"
        return None
    entry = Entry.parse(raw)
    if entry.non_commercial and not allow_non_commercial:
        refused[entry.id] = non_commercial(entry.id, entry.licence)
        return None
    return entry


def non_commercial(model: str, licence: str) -> str:
    """Why a checkpoint that is not for commerce is refused."""
    return (f"{model} comes under {licence}, which forbids commercial use. Where yours is not commercial, or you have a licence for it, "
            "set SYMPOSIA_ALLOW_NON_COMMERCIAL=1.")


def _unique(entry: Entry, taken: Counter[str]) -> None:
    for name in (entry.id, *entry.aliases):
        taken[name] += 1
        if taken[name] > 1:
            raise BadInput(f"the file names {name!r} twice.", field="id", value=name, remedy="Remove one of the entries.")
        if catalogue.entries().id_of(name) is not None:
            raise BadInput(f"{name!r} is in the catalogue that comes with Symposia.", field="id", value=name, remedy="Take another id or alias.")


def _rows(file: Path) -> Sequence[Any]:
    try:
        text = file.expanduser().read_text(encoding="utf-8")
    except OSError as error:
        raise UnknownModel(f"{file} cannot be read: {error}.", field="entries", value=str(file), remedy="Name a file of entries.") from None
    try:
        if file.suffix == ".toml":
            rows = tomllib.loads(text).get("checkpoint", ())
        elif file.suffix == ".jsonl":
            rows = [json.loads(line) for line in text.splitlines() if line.strip()]
        else:
            rows = json.loads(text)
    except ValueError as error:
        raise BadInput(f"{file} is no {file.suffix.lstrip('.') or 'JSON'}: {error}.", field="entries", value=str(file), remedy="Correct it there.") from None
    if not isinstance(rows, list) or not rows:
        raise BadInput(f"{file} has no entries.", field="entries", value=str(file),
                       remedy="Give [[checkpoint]] tables (.toml), a JSON array (.json), or an object per line (.jsonl).")
    return rows
