"""``symposia models list``: what is in the model store, and what is registered. Thousands of rows cost a few requests and no library for tables."""

from __future__ import annotations

import json as jsons
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from symposia_shared.errors import Damaged
    from symposia_shared.settings import S3Settings
    from symposia_worker.models.index import Rows

_HEAD = ("id", "architecture", "parameters", "context", "can", "bytes", "licence")
#: columns that are aligned to the right
_NUMBERS = {2, 3, 5}


def list_models(settings: S3Settings, *, json: bool, check: bool) -> None:
    """Print the rows of the index; ``check`` reads every manifest instead. Raises Damaged where one cannot be read."""
    quick = None if check else _quick(settings)
    rows, damaged = (quick, ()) if quick is not None else _read(settings, check=check)
    if json:
        print(jsons.dumps([_facts(model, row) for model, row in rows.items()]))
    elif rows:
        print("\n".join(_table([_cells(model, row) for model, row in sorted(rows.items(), key=_under_its_checkpoint)])))
        if any(_of(row).get("non_commercial") for row in rows.values()):
            print("NC: the licence forbids commercial use.")
    elif not damaged:
        print("The model store is empty. Begin with: symposia models pull smollm2-135m")
    for one in damaged:
        raise one


def _quick(settings: S3Settings) -> Rows | None:
    """The rows, where the index is whole and can be read without boto3; None: ``_read`` does it."""
    from http.client import HTTPException

    from symposia_shared.reading import QuickReader
    from symposia_worker.models.index import read

    try:
        found = read(QuickReader(settings))
    except (OSError, ValueError, HTTPException):
        return None
    return found.rows if found.complete and not found.unsure else None


def _read(settings: S3Settings, *, check: bool) -> tuple[Rows, tuple[Damaged, ...]]:
    """The rows; ``check``: of the manifests themselves, and the index is drawn from them again."""
    from symposia_shared.store import Store
    from symposia_worker.models.store import ModelStore

    models = ModelStore(Store(settings))
    if not check:
        return models.listed()
    found = models.redraw()
    whole = {m.id for m in found.checkpoints}
    rows, _ = models.listed()
    return {model: row for model, row in rows.items() if model in whole or "entry" in row}, found.damaged


def _of(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """What is stored, or else what is said of it."""
    known: Mapping[str, Any] = row.get("stored") or row.get("entry") or {}
    return known


def _under_its_checkpoint(item: tuple[str, Mapping[str, Any]]) -> tuple[str, str]:
    form = _of(item[1]).get("form_of")
    return (form["id"], form["mode"]) if form else (item[0], "")


def _facts(model: str, row: Mapping[str, Any]) -> dict[str, Any]:
    known = dict(_of(row))
    return {"id": model, **known, "stored": "stored" in row, "non_commercial": bool(known.get("non_commercial"))}


def _cells(model: str, row: Mapping[str, Any]) -> tuple[str, ...]:
    known = _of(row)
    form = known.get("form_of")
    size = f"{known['bytes']:,}" if "stored" in row else "not stored"
    licence = known["licence"] + (" NC" if known.get("non_commercial") else "")
    base = known.get("adapter_of")
    architecture = f"LoRA of {base['id']}" if base else known["architecture"]
    return (f"  openvino {form['mode']}" if form else model, architecture, f"{known['parameters']:,}", str(known["context"]),
            " ".join(known["capabilities"]), size, licence)


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    every = [_HEAD, *rows]
    widths = [max(len(row[n]) for row in every) for n in range(len(_HEAD))]
    return ["  ".join(c.rjust(w) if n in _NUMBERS else c.ljust(w) for n, (c, w) in enumerate(zip(row, widths, strict=True))).rstrip() for row in every]
