"""A checkpoint's forms for OpenVINO: exported once per machine and revision, stored beside it as checkpoints of their own.

The forms of ``ID`` are ``ID--openvino-exact`` and ``ID--openvino-fast``; what their making told, refusals included, is
``models/ID/forms.json``. A form counts only while its checkpoint has the revision it was made of.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from pydantic import Field

from symposia_shared.catalogue import FormMode, FormOf, Sha256
from symposia_shared.errors import BadInput, SymposiaError
from symposia_shared.values import Value
from symposia_worker.families.forms import ALLOWED, ALLOWED_PAIRS, FormReport
from symposia_worker.families.forms import suits as suited
from symposia_worker.models.cache import shared_cache
from symposia_worker.models.exporting import run_export, run_measure
from symposia_worker.models.locks import locked
from symposia_worker.models.manifest import Manifest, StoredFile, revision_of, sha256_of, within
from symposia_worker.models.store import ModelStore, Progress, silent
from symposia_worker.models.weights import checkpoint_files, form_files

MARK = "--openvino-"
MODES: tuple[FormMode, ...] = ("exact", "fast")

#: raised when the exporter writes something else than before
_EXPORTER = 1


class Forms(Value):
    """What the making of a checkpoint's forms told. ``revision``: the checkpoint's."""

    revision: Sha256
    reports: tuple[FormReport, ...] = ()
    #: why none was made
    refused: str | None = None

    def report(self, mode: FormMode) -> FormReport | None:
        """What was told of one mode."""
        return next((r for r in self.reports if r.mode == mode), None)


class _Kept(Value):
    """An export on this machine: what it told, and the digest of each file."""

    reports: tuple[FormReport, ...] = ()
    refused: str | None = None
    sha256: dict[str, str] = Field(default_factory=dict)


def form_id(model: str, mode: FormMode) -> str:
    """The id a form is stored under."""
    return f"{model}{MARK}{mode}"


def own_name(model: str) -> str:
    """``model`` if a user may give it to a checkpoint. Raises BadInput for the name of a form."""
    if MARK in model:
        raise BadInput(f"{model!r} is the name of a form: those are made from a checkpoint and are not named.", field="model", value=model,
                       remedy=f"Leave {MARK!r} out.")
    return model


def installed() -> bool:
    """Whether forms can be made here."""
    return find_spec("optimum.intel") is not None if find_spec("optimum") else False


def servable() -> bool:
    """Whether forms can be served here."""
    return find_spec("openvino_genai") is not None


def suits(manifest: Manifest) -> bool:
    """Whether forms of a checkpoint may be made: it is a decoder or an encoder-decoder of an allowed architecture, and no form itself."""
    facts = manifest.facts
    return facts.form_of is None and facts.adapter_of is None and any(suited(facts.model_type, kind) for kind in facts.capabilities)


def told(models: ModelStore, manifest: Manifest) -> Forms | None:
    """What is known of a checkpoint's forms; None: none were made of this revision."""
    body = models.store.get(_key(manifest.id))
    if body is None:
        return None
    try:
        found = Forms.from_json(body)
    except BadInput:  # written by another version; making them again is the remedy
        return None
    return found if found.revision == manifest.revision else None


def form(models: ModelStore, manifest: Manifest, mode: FormMode) -> Manifest | None:
    """The stored form of a checkpoint as it is now."""
    stored = models.sound(form_id(manifest.id, mode))
    of = stored.facts.form_of if stored else None
    return stored if of is not None and of.revision == manifest.revision else None


def make(models: ModelStore, model: str, *, cache: Path, threads: int, progress: Progress = silent) -> Forms:
    """Export ``model``, test and measure its forms, and store those that passed. What is stored already is left as it is.

    Raises UnknownModel, Unavailable, and BadInput where forms of it cannot be made at all.
    """
    manifest = models.require(own_name(model))
    known = told(models, manifest)
    if known is not None and all(r.refused or form(models, manifest, r.mode) for r in known.reports):
        return known
    if not suits(manifest):
        raise BadInput(f"{model} is a {manifest.facts.model_type}; forms are made of {', '.join((*ALLOWED, *ALLOWED_PAIRS))}.", field="model", value=model,
                       remedy="It is served by torch.")
    checkpoints = shared_cache(cache)
    try:
        place, kept = _exported(manifest.revision, model, lambda: checkpoints.fetch(models, model, progress=progress), cache=cache, threads=threads,
                                progress=progress)
    finally:
        checkpoints.release(model)
    for report in kept.reports:
        if not report.refused:
            facts = manifest.facts.model_copy(update={
                "form_of": FormOf(id=manifest.id, revision=manifest.revision, mode=report.mode),
                "dtype": "float32" if report.mode == "exact" else "int8", "source": f"export:{manifest.id}@{manifest.revision[:12]}"})
            models.push(place / report.mode, form_id(model, report.mode), facts=facts, progress=progress)
    found = Forms(revision=manifest.revision, reports=kept.reports, refused=kept.refused)
    models.store.put(_key(model), found.canonical())
    return found


def local(folder: Path, name: str, mode: FormMode, *, cache: Path, threads: int, progress: Progress = silent) -> Path:
    """The folder of a form of the checkpoint in ``folder``, without a model store. Raises BadInput where it was refused."""
    files = [StoredFile(path=path, size=(folder / path).stat().st_size, sha256=sha256_of(folder / path)) for path in checkpoint_files(folder)]
    place, kept = _exported(revision_of(files), name, lambda: folder, cache=cache, threads=threads, progress=progress)
    report = next((r for r in kept.reports if r.mode == mode), None)
    why = kept.refused or (report.refused if report else "none was made.")
    if why:
        raise BadInput(f"{name} has no form {mode}: {why}", field="mode", value=mode, remedy="Use --engine torch.")
    return place / mode


def measure(models: ModelStore, model: str, *, cache: Path, threads: int, progress: Progress = silent) -> Forms:
    """Measure how fast the stored forms decode on this machine, and note it. Raises BadInput where there are none."""
    manifest = models.require(own_name(model))
    known = told(models, manifest)
    if known is None or not any(form(models, manifest, mode) for mode in MODES):
        raise BadInput(f"{model} has no forms.", field="model", value=model, remedy=f"Make them: symposia models export {model}")
    reports = []
    for report in known.reports:
        if not report.refused and form(models, manifest, report.mode):
            name = form_id(model, report.mode)
            folder = shared_cache(cache).fetch(models, name, progress=progress)
            progress(f"measuring {name}", 0, 0)
            measured = run_measure(folder, report.mode, name=name, threads=threads)
            report = report.model_copy(update=measured.model_dump(exclude_none=True))
        reports.append(report)
    found = known.model_copy(update={"reports": tuple(reports)})
    models.store.put(_key(model), found.canonical())
    return found


def remove(models: ModelStore, model: str) -> int:
    """Remove the forms of ``model``, and what is known of them; how many objects that were."""
    objects = 0
    for mode in MODES:
        try:
            stored = models.manifest(form_id(model, mode)) is not None
        except SymposiaError:  # one that is damaged goes, too
            stored = True
        objects += models.remove(form_id(model, mode)) if stored else 0
    if models.store.head(_key(model)) is not None:
        models.store.delete(_key(model))
        objects += 1
    return objects


def _key(model: str) -> str:
    return f"models/{model}/forms.json"


# -- once per machine


def _exported(revision: str, name: str, folder: Callable[[], Path], *, cache: Path, threads: int, progress: Progress) -> tuple[Path, _Kept]:
    """The folder with a checkpoint's forms, and what their making told; exported once per machine and revision."""
    place = cache / "forms" / f"{revision}-{_EXPORTER}"
    with locked(cache / "forms" / ".locks" / f"{place.name}.lock"):
        kept = _read(place)
        if kept is None:
            work = cache / "forms" / f".work-{place.name}"
            for left in (place, work):
                shutil.rmtree(left, ignore_errors=True)
            work.mkdir(parents=True)
            try:
                kept = _run(folder(), work, name, threads=threads, progress=progress)
                (work / "told.json").write_bytes(kept.canonical())
                work.rename(place)
            finally:
                shutil.rmtree(work, ignore_errors=True)
    return place, kept


def _run(folder: Path, work: Path, name: str, *, threads: int, progress: Progress) -> _Kept:
    reports, refused = run_export(folder, work, name=name, threads=threads, progress=progress)
    digests = {f"{r.mode}/{path}": sha256_of(work / r.mode / path) for r in reports if not r.refused for path in form_files(work / r.mode)}
    return _Kept(reports=reports, refused=refused, sha256=digests)


def _read(place: Path) -> _Kept | None:
    """What was told when ``place`` was made, if every byte is still there."""
    try:
        kept = _Kept.parse(json.loads((place / "told.json").read_text(encoding="utf-8")))
        return kept if all(sha256_of(within(place, path)) == digest for path, digest in kept.sha256.items()) else None
    except (OSError, ValueError):
        return None
