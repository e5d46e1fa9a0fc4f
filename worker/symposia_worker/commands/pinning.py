"""``symposia models pin`` and ``unpin``: what no pool may evict."""

from __future__ import annotations

import json as jsons
from pathlib import Path
from typing import Annotated

import typer

Folder = Annotated[Path | None, typer.Option("--dir", help="The stack's folder; default: SYMPOSIA_DIR or ~/.symposia.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print facts as JSON, and nothing else, on standard output.")]
Model = Annotated[str, typer.Argument(metavar="ID", help="NAME or OWNER/NAME.")]


def pin(model: Model, json: AsJson = False, dir: Folder = None) -> None:
    """Keep a checkpoint resident on every pool that serves it: loaded unasked, never evicted. Within two seconds, and until `unpin`."""
    _set(model, True, json, dir)


def unpin(model: Model, json: AsJson = False, dir: Folder = None) -> None:
    """Let a checkpoint be evicted again when its room is needed."""
    _set(model, False, json, dir)


def _set(model: str, pinned: bool, json: bool, dir: Path | None) -> None:
    from symposia_shared.ledger import Ledger
    from symposia_shared.ledger.backlog import pin as pin_in
    from symposia_shared.settings import load
    from symposia_shared.store import Store
    from symposia_worker.models.store import ModelStore

    settings = load(dir)
    if pinned:
        ModelStore(Store(settings.s3)).require(model)
    changed = pin_in(Ledger(settings.broker, settings.prefix), model, pinned=pinned)
    how = "pinned" if pinned else "not pinned"
    print(jsons.dumps({"id": model, "pinned": pinned, "changed": changed}) if json else f"{model} is {how}{'' if changed else ', as it was'}.")
