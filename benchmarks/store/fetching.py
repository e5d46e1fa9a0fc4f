"""``python -m benchmarks.store.fetching CACHE MODEL``: one live load, to be killed."""

from __future__ import annotations

import sys
from pathlib import Path

from symposia_shared.settings import load
from symposia_shared.store import Store
from symposia_worker.models.cache import ModelCache
from symposia_worker.models.store import ModelStore

if __name__ == "__main__":
    ModelCache(Path(sys.argv[1])).fetch(ModelStore(Store(load().s3)), sys.argv[2])
