"""How long ``symposia models list`` takes by the clock, from the shell's view, for a store of so many checkpoints."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

from symposia_shared.settings import S3Settings, Settings
from symposia_worker.models import index
from symposia_worker.models.manifest import Manifest
from symposia_worker.models.store import ModelStore


def fill(models: ModelStore, like: Manifest, count: int) -> None:
    """Rows of ``count`` checkpoints as ``count`` pushes would leave them."""
    shards: dict[int, index.Rows] = {n: {} for n in range(index.SHARDS)}
    for n in range(count):
        name = f"lab-{n % 50}/model-{n:05}"
        shards[index.shard_of(name)][name] = {"stored": index.stored_row(like)}
    for shard, rows in shards.items():
        models.store.put(index._key(shard), index._packed(rows))
    models.store.put(f"{index.PREFIX}complete", b"{}")


def listed(s3: S3Settings, folder: Path, count: int, *, rounds: int) -> list[str]:
    """A row of the table. Raises RuntimeError where a list does not have ``count`` rows."""
    command = [sys.executable, "-c", "from symposia.cli import main; main()", "models", "list"]
    environ = {**os.environ, **Settings(s3=s3, dir=folder).environ()}
    walls, cpus = [], []
    for _ in range(rounds):
        began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        walls.append(time.perf_counter() - began)
        cpus.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        if len(done.stdout.splitlines()) != count + 1:
            raise RuntimeError(f"{len(done.stdout.splitlines())} lines for {count} checkpoints")
    return [f"{count:,}", f"{median(walls):.2f}", f"{max(walls):.2f}", f"{median(cpus):.2f}"]
