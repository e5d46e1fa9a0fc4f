"""``symposia models prefetch`` and ``gc``: what a machine will need is fetched before it is asked for, what nothing names is removed."""

from __future__ import annotations

import json as jsons
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from symposia_worker.models.progress import shown

if TYPE_CHECKING:
    from symposia_worker.models.cache import ModelCache
    from symposia_worker.models.store import ModelStore
    from symposia_worker.models.wishes import Wish


def prefetch(
    models: Annotated[list[str] | None, typer.Argument(metavar="ID...", help="Checkpoints pools here will need. Default: show what is queued.")] = None,
    priority: Annotated[int, typer.Option(min=-100, max=100, help="The higher comes first, and stays when a lower one wants room.")] = 0,
    cancel: Annotated[bool, typer.Option("--cancel", help="No longer wish for these; what is here of them may go.")] = False,
    now: Annotated[bool, typer.Option("--now", help="Fetch in this process, even where a pool would.")] = False,
    device: Annotated[str, typer.Option(help="The device that will serve them: on a CPU the OpenVINO form is fetched, where it is stored.")] = "cpu",
    engine: Annotated[str, typer.Option(help="auto, torch or openvino, as the pool's.")] = "auto",
    mode: Annotated[str, typer.Option(help="exact or fast, as the pool's.")] = "exact",
    json: Annotated[bool, typer.Option("--json", help="Print facts as JSON, and nothing else, on standard output.")] = False,
    dir: Annotated[Path | None, typer.Option("--dir", help="The stack's folder; default: SYMPOSIA_DIR or ~/.symposia.")] = None,
) -> None:
    """Bring checkpoints into this machine's cache, behind everything else; a pool here does it, or else this command.

    Never evicts what is in use, or wished for with the same or a higher priority. One that does not fit is refused with the numbers; see it with
    `symposia models prefetch`.
    """
    from symposia_worker.commands.models import opened
    from symposia_worker.models.cache import cache_folder, shared_cache

    stack, store = opened(dir)
    place = cache_folder(stack)
    cache = shared_cache(place)
    if models and cancel:
        for model in models:
            for stored in {model, *(w.id for w in cache.wishes.all() if w.id.startswith(f"{model}--"))}:
                cache.wishes.drop(stored)
    elif models:
        # what is asked for is known before anything is queued
        names = [_stored(store, model, device=device, engine=engine, mode=mode) for model in models]
        cache.wishes.add(names, priority=priority)
        if now or not _watched(cache):
            _fetch(place, store)
    _tell(cache, json)


def _stored(store: ModelStore, model: str, *, device: str, engine: str, mode: str) -> str:
    """The id of the folder a pool would load. Raises UnknownModel, BadInput."""
    from typing import get_args

    from symposia_shared.errors import BadInput
    from symposia_worker.engines.protocol import EngineChoice, Mode
    from symposia_worker.models.seats import seat_of

    for field, value, choices in (("engine", engine, get_args(EngineChoice)), ("mode", mode, get_args(Mode))):
        if value not in choices:
            raise BadInput(f"{value!r} is no {field}.", field=field, value=value, remedy=f"Give {', '.join(choices)}.")
    manifest = store.require(model)
    return manifest.id if manifest.facts.form_of else seat_of(store, manifest, device=device, engine=engine, mode=mode).stored  # type: ignore[arg-type]


def _watched(cache: ModelCache) -> bool:
    """Whether a pool on this machine fetches for this cache."""
    from symposia_worker.models.locks import try_locked

    with try_locked(cache.wishes.watch_lock) as nobody:
        return not nobody


def _fetch(place: Path, store: ModelStore) -> None:
    from symposia_worker.models.prefetching import prefetcher

    with shown() as progress:
        prefetcher(place, store, progress=progress).run()


def _tell(cache: ModelCache, json: bool) -> None:
    partial = {p.id: p.written for p in cache.room.promised()}
    wishes = cache.wishes.all()
    if json:
        print(jsons.dumps([{**w.model_dump(mode="json"), "bytes_here": w.bytes or partial.get(w.id, 0)} for w in wishes]))
        return
    print("\n".join(_line(w, partial.get(w.id, 0)) for w in wishes) if wishes else "Nothing is queued.")


def _line(wish: Wish, written: int) -> str:
    far = {"queued": f"{written:,} bytes are here", "here": f"{wish.bytes:,} bytes, not used yet", "refused": wish.said}[wish.state]
    return f"{wish.priority:>4}  {wish.state:8} {wish.id}: {far}"


def gc(
    delete: Annotated[bool, typer.Option("--delete", help="Remove it; without this it is only told.")] = False,
    cache: Annotated[bool, typer.Option("--cache", help="Of this machine's cache: old revisions, removed checkpoints, downloads cut off.")] = False,
    grace: Annotated[float, typer.Option(min=0.0, help="Hours: what is younger is left alone, for a push may be under way.")] = 24.0,
    json: Annotated[bool, typer.Option("--json", help="Print facts as JSON, and nothing else, on standard output.")] = False,
    dir: Annotated[Path | None, typer.Option("--dir", help="The stack's folder; default: SYMPOSIA_DIR or ~/.symposia.")] = None,
) -> None:
    """Find objects of the model store that no manifest names, and with --delete remove them."""
    from symposia_worker.commands.models import opened

    stack, store = opened(dir)
    told = _gc_cache(stack, store, delete=delete, grace_s=grace * 3600) if cache else _gc_store(store, delete=delete, grace_s=grace * 3600)
    print(jsons.dumps(told) if json else _sentence(told))


def _gc_store(store: ModelStore, *, delete: bool, grace_s: float) -> dict[str, Any]:
    from symposia_worker.models import collecting

    found = collecting.find(store, grace_s=grace_s)
    removed, size = collecting.collect(store, found, grace_s=grace_s) if delete else (0, 0)
    return {"where": store.store.uri("models/"), "objects": found.count, "bytes": found.bytes, "uploads": len(found.uploads),
            "checkpoints": {m: sum(o.size for o in some) for m, some in found.objects.items()}, "young": found.young, "young_bytes": found.young_bytes,
            "damaged": [str(d) for d in found.damaged], "removed": removed, "bytes_removed": size, "deleted": delete}


def _gc_cache(stack: Path, store: ModelStore, *, delete: bool, grace_s: float) -> dict[str, Any]:
    from symposia_worker.models import collecting
    from symposia_worker.models.cache import cache_folder, shared_cache

    cache = shared_cache(cache_folder(stack))
    found = collecting.find_in_cache(store, cache, grace_s=grace_s)
    gone = collecting.collect_in_cache(cache, found) if delete else []
    return {"where": str(cache.folder), "objects": len(found), "bytes": sum(f.size for f in found), "uploads": 0,
            "checkpoints": {f.why: f.size for f in found}, "young": 0, "young_bytes": 0, "damaged": [], "removed": len(gone),
            "bytes_removed": sum(f.size for f in gone), "deleted": delete}


def _sentence(told: dict[str, Any]) -> str:
    lines = [f"{size:>16,}  {what}" for what, size in told["checkpoints"].items()]
    what = f"{told['objects']} that nothing names, {told['bytes']:,} bytes, and {told['uploads']} uploads that were cut off"
    lines.append(f"{told['where']}: {what}.")
    if told["young"]:
        lines.append(f"{told['young']} more, {told['young_bytes']:,} bytes, are younger than the grace and are left alone.")
    lines += [f"left alone: {why}" for why in told["damaged"]]
    lines.append(f"{told['removed']} are removed, {told['bytes_removed']:,} bytes." if told["deleted"] else "Nothing was removed; --delete does it.")
    return "\n".join(lines)
