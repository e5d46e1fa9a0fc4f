"""A checkpoint on this machine, without a model store: a folder, the model cache, or the package that carries it."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from symposia_shared import catalogue
from symposia_shared.errors import UnknownModel
from symposia_worker.models import ingest
from symposia_worker.models.cache import ModelCache
from symposia_worker.models.store import Progress, silent


@dataclass(frozen=True, slots=True)
class LocalCheckpoint:
    """What an engine is asked to load. ``folder`` is None for the scripted ones."""

    name: str
    folder: Path | None

    @property
    def fingerprint(self) -> str:
        """Differs when the files do, by their names, sizes and times of change."""
        looks = [] if self.folder is None else sorted((p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in self.folder.iterdir() if p.is_file())
        return hashlib.sha256(repr((self.name, looks)).encode()).hexdigest()[:16]


def local_checkpoint(what: str, *, cache: Path, accept_licence: bool = False, progress: Progress = silent) -> LocalCheckpoint:
    """The checkpoint ``what`` names: a folder, or an id of the model cache or of a package. Raises UnknownModel, and what fetching raises."""
    if what.startswith("test/"):
        return LocalCheckpoint(what, None)
    source = ingest.source_named(what)
    if isinstance(source, Path):
        return LocalCheckpoint(_name_of(source), source.resolve())
    kept = ModelCache(cache / "models").local(source)
    if kept is not None:
        return LocalCheckpoint(source, kept)
    entry = catalogue.entries().get(source)
    if entry is None or entry.source.kind != "package":
        raise UnknownModel(f"{source!r} is neither a folder, nor in the model cache {cache / 'models'}, nor carried by a package.", field="model",
                           value=source, remedy="Name its folder, or let a stack here fetch it: symposia models pull, then serve.")
    return LocalCheckpoint(source, ingest.package_folder(entry, cache=cache, accept_licence=accept_licence, progress=progress))


def _name_of(folder: Path) -> str:
    """A checkpoint's name made of its folder's."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", folder.resolve().name).strip("-._")
    return name[:120] or "checkpoint"
