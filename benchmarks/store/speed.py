"""How fast a checkpoint is fetched and verified, beside the same bytes by boto3 and beside the disk; every round in another order."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from symposia_shared.store import Store
from symposia_worker.models.cache import ModelCache
from symposia_worker.models.manifest import Manifest
from symposia_worker.models.store import ModelStore

_BLOCK = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Run:
    """One contender's one run."""

    seconds: float
    #: of this process; the server's are not in it
    cpu_s: float


def run_all(models: ModelStore, manifest: Manifest, source: Path, folder: Path, *, rounds: int) -> dict[str, list[Run]]:
    """The runs of each contender, by name; ``source``: a file with the bytes of the checkpoint's one large file."""
    store, key = models.store, manifest.key(max(manifest.files, key=lambda f: f.size))
    contenders: dict[str, Callable[[Path], None]] = {
        "ours, verified, on the disk": lambda to: _ours(models, manifest.id, to),
        "boto3 get_object, thrown away": lambda to: _get(store, key, None),
        "boto3 get_object, on the disk": lambda to: _get(store, key, to),
        "boto3 download_file, on the disk": lambda to: _transfer(store, key, to),
        "the disk alone": lambda to: _write(source, to),
    }
    names, runs = list(contenders), {name: [] for name in contenders}
    _get(store, key, None)  # the server's first reading of the volume is nobody's
    for turn in range(rounds):
        for name in names[turn % len(names):] + names[:turn % len(names)]:
            place = folder / "run"
            place.mkdir(parents=True)
            runs[name].append(_timed(contenders[name], place))
            shutil.rmtree(place)
            os.sync()
    return runs


def rows(runs: dict[str, list[Run]], size: int) -> list[list[str]]:
    """A table: MB/s, CPU seconds for each GB, and ours beside it, by the medians and from round to round."""
    ours = runs["ours, verified, on the disk"]
    found = []
    for name, some in runs.items():
        ratios = sorted(theirs.seconds / mine.seconds for mine, theirs in zip(ours, some, strict=True))
        found.append([name, f"{size / 1e6 / median(r.seconds for r in some):,.0f}", f"{median(r.cpu_s for r in some) * 1e9 / size:.2f}",
                      f"{median(r.seconds for r in some) / median(r.seconds for r in ours):.2f}", f"{ratios[0]:.2f} to {ratios[-1]:.2f}"])
    return found


def _timed(contender: Callable[[Path], None], place: Path) -> Run:
    began, cpu = time.perf_counter(), time.process_time()
    contender(place)
    return Run(time.perf_counter() - began, time.process_time() - cpu)


def _ours(models: ModelStore, model: str, to: Path) -> None:
    ModelCache(to).fetch(models, model)


def _get(store: Store, key: str, to: Path | None) -> None:
    body = store.client.get_object(Bucket=store.bucket, Key=key)["Body"]
    if to is None:
        while body.read(_BLOCK):
            pass
        return
    with (to / "file").open("wb") as file:
        while block := body.read(_BLOCK):
            file.write(block)
        file.flush()
        _sync(file.fileno())


def _transfer(store: Store, key: str, to: Path) -> None:
    from boto3.s3.transfer import TransferConfig

    store.client.download_file(store.bucket, key, str(to / "file"), Config=TransferConfig(preferred_transfer_client="classic"))
    with (to / "file").open("rb") as file:
        file.flush()
        _sync(file.fileno())


def _write(source: Path, to: Path) -> None:
    with source.open("rb") as file, (to / "file").open("wb") as copy:
        while block := file.read(_BLOCK):
            copy.write(block)
        copy.flush()
        _sync(copy.fileno())


def _sync(descriptor: int) -> None:
    os.fsync(descriptor)
