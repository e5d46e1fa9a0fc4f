"""Garbage: objects of the model store that no manifest names, and folders of a machine's cache that no manifest names any more.

What is younger than the grace is left alone, and so is everything of a checkpoint with a mark that is (``Index.changing``): a
push under way is not collected. Manifest and marks are read again just before a checkpoint's objects go.
"""

from __future__ import annotations

import shutil
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from symposia_shared.errors import Damaged
from symposia_shared.store import Listed, Upload
from symposia_worker.models.cache import ModelCache
from symposia_worker.models.index import MARKS, marked
from symposia_worker.models.manifest import Manifest, manifest_key
from symposia_worker.models.store import ModelStore, checkpoint_of

#: seconds: an upload takes no longer than a day
GRACE_S = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class Garbage:
    """What no manifest names."""

    #: by the checkpoint's id
    objects: Mapping[str, Sequence[Listed]]
    uploads: Sequence[Upload]
    #: marks of changes that were cut off
    marks: Sequence[str]
    #: checkpoints whose manifest cannot be read: nothing of theirs is collected
    damaged: Sequence[Damaged]
    #: objects that would be garbage if they were older, and their bytes
    young: int
    young_bytes: int

    @property
    def bytes(self) -> int:
        """Of all objects; what uploads have left is not told by S3."""
        return sum(o.size for some in self.objects.values() for o in some)

    @property
    def count(self) -> int:
        """Of objects."""
        return sum(len(some) for some in self.objects.values())


def find(models: ModelStore, *, grace_s: float = GRACE_S, now: float | None = None) -> Garbage:
    """What would be collected now. ``now``: seconds since the epoch."""
    before = (time.time() if now is None else now) - grace_s
    listed = models.store.objects("models/")
    by_id: dict[str, list[Listed]] = defaultdict(list)
    for found in listed:
        model = checkpoint_of(found.key)
        if model is not None and found.key != manifest_key(model):
            by_id[model].append(found)
    marks = models.store.objects(MARKS)
    changing = {marked(m.key) for m in marks if m.written_at > before}
    named, damaged = _named(models, sorted(by_id))
    loose = {m: [o for o in some if o.key not in named[m]] for m, some in by_id.items() if m in named and m not in changing}
    old = {m: [o for o in some if o.written_at <= before] for m, some in loose.items()}
    young = [o for some in loose.values() for o in some if o.written_at > before]
    uploads = [u for u in models.store.uploads("models/") if u.begun_at <= before]
    return Garbage(objects={m: some for m, some in old.items() if some}, uploads=uploads, marks=[m.key for m in marks if m.written_at <= before],
                   damaged=damaged, young=len(young), young_bytes=sum(o.size for o in young))


def collect(models: ModelStore, garbage: Garbage, *, grace_s: float = GRACE_S) -> tuple[int, int]:
    """Remove ``garbage`` as far as it still is; how many objects that were, and their bytes."""
    count = size = 0
    for model, objects in garbage.objects.items():
        # a push may have begun, or have ended, since it was looked at
        still = find_of(models, model, objects, grace_s=grace_s)
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(lambda o: models.store.delete(o.key), still))
        count, size = count + len(still), size + sum(o.size for o in still)
    for upload in garbage.uploads:
        models.store.end_upload(upload)
    for mark in garbage.marks:
        stored = models.look(marked(mark))
        if not isinstance(stored, Damaged):  # its row says that it is there, and is all that does
            models.index.settle(marked(mark), stored)
            models.store.delete(mark)
    return count, size


def find_of(models: ModelStore, model: str, objects: Sequence[Listed], *, grace_s: float) -> list[Listed]:
    """Of ``objects`` those that no manifest names now, where nobody changes ``model``."""
    before = time.time() - grace_s
    changing = any(marked(m.key) == model and m.written_at > before for m in models.store.objects(MARKS))
    named, _ = _named(models, [model])
    return [] if changing or model not in named else [o for o in objects if o.key not in named[model]]


def _named(models: ModelStore, ids: Sequence[str]) -> tuple[dict[str, set[str]], list[Damaged]]:
    """The keys each checkpoint's manifest names; none for one without a manifest, and no entry for one whose manifest is damaged."""
    with ThreadPoolExecutor(16) as threads:
        found = dict(zip(ids, threads.map(models.look, ids), strict=True))
    named = {m: {f.key(file) for file in f.files} | {f"models/{m}/forms.json"} if isinstance(f, Manifest) else set() for m, f in found.items()
             if not isinstance(f, Damaged)}
    return named, [f for f in found.values() if isinstance(f, Damaged)]


@dataclass(frozen=True, slots=True)
class Leftover:
    """A folder of the cache that nothing names any more. ``why``: in words."""

    folder: Path
    size: int
    why: str


def find_in_cache(models: ModelStore, cache: ModelCache, *, grace_s: float = GRACE_S) -> list[Leftover]:
    """Old revisions, checkpoints that are no longer in the model store, and downloads that were cut off longer than the grace ago.

    Not what a damaged manifest may name: it may be the last whole copy.
    """
    before, found = time.time() - grace_s, []
    for cached in cache.contents():
        manifest = models.look(cached.id)
        if isinstance(manifest, Damaged):
            continue
        if manifest is None or manifest.revision != cached.revision:
            why = f"{cached.id} is no longer in the model store" if manifest is None else f"{cached.id} has another revision now"
            found.append(Leftover(cached.folder, cached.size, why))
    for partial in cache.room.promised():
        if partial.begun_at <= before and cache.wishes.of(partial.id) is None:
            found.append(Leftover(partial.folder, partial.written, f"the download of {partial.id} was cut off"))
    return found


def collect_in_cache(cache: ModelCache, leftovers: Sequence[Leftover]) -> list[Leftover]:
    """Remove those nobody uses; which they were."""
    gone = []
    for leftover in leftovers:
        if cache.room.remove(leftover.folder):
            gone.append(leftover)
    for empty in sorted((p for p in cache.folder.glob("*/*") if p.is_dir() and not p.parent.name.startswith(".")), reverse=True):
        if not any(empty.iterdir()):
            shutil.rmtree(empty, ignore_errors=True)
    return gone
