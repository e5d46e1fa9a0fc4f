"""A download that is killed with SIGKILL at random moments and taken up by another process each time, until it is whole."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks.store.wire import Wire
from symposia_shared.settings import S3Settings, Settings
from symposia_worker.models.cache import ModelCache
from symposia_worker.models.manifest import Manifest, sha256_of


@dataclass(frozen=True, slots=True)
class Killed:
    """What the kills cost."""

    kills: int
    size: int
    #: bytes S3 sent, headers included
    received: int
    #: by which share of the checkpoint the kills came, in order
    at: tuple[float, ...]
    intact: bool


def run(s3: S3Settings, manifest: Manifest, folder: Path, *, kills: int, seed: int) -> Killed:
    """Fetch ``manifest``'s checkpoint into a new cache in ``folder`` with so many kills in between."""
    dice = random.Random(seed)
    address = urlsplit(str(s3.endpoint_url))
    wire = Wire((str(address.hostname), int(address.port or 80)))
    relayed = s3.model_copy(update={"endpoint_url": f"http://127.0.0.1:{wire.port}"})
    environ = {**os.environ, **Settings(s3=relayed, dir=folder / "stack").environ()}
    cache, at, done = ModelCache(folder / "cache"), [], 0
    while done < kills:
        # spread over what is left, so that the last kill comes before the end
        more = dice.uniform(0, 1.8 * (manifest.size - _here(cache)) / (kills - done + 1))
        child = _fetching(cache.folder, manifest.id, environ)
        wanted = _here(cache) + more
        while _here(cache) < wanted and child.poll() is None:
            time.sleep(0.002)
        time.sleep(dice.uniform(0, 0.02))
        if child.poll() is not None:
            break
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        done += 1
        at.append(_here(cache) / manifest.size)
    _fetching(cache.folder, manifest.id, environ).wait()
    whole = cache.folder_of(manifest)
    intact = all((whole / f.path).is_file() and sha256_of(whole / f.path) == f.sha256 for f in manifest.files)
    wire.close()
    return Killed(done, manifest.size, wire.received, tuple(at), intact)


def _here(cache: ModelCache) -> int:
    """Bytes of the download on the disk."""
    return sum(p.written for p in cache.room.promised())


def _fetching(cache: Path, model: str, environ: dict[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "benchmarks.store.fetching", str(cache), model], env=environ)
