from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator

import pytest
from hypothesis import settings

from symposia_worker.imports import leave_out

# Tests start hundreds of processes of ours, and xdist's workers read all tests: where Python is told to keep no bytecode, each would compile all anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
# Several processes of tests share few cores: a library that counts all of them as its own, and spins while it waits, takes them from the others.
# It is read when torch is loaded; engine processes are given threads of their own.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

leave_out(["sklearn"])  # the exporter, run in here, needs scipy

# a busy machine is no failure
settings.register_profile("ours", deadline=None)
settings.load_profile("ours")

#: the files that take longest come first: a worker takes whole files, and one that began such a file last would end minutes after the others
_LONGEST = ("test_faults", "test_readme", "test_batch_run_engines", "test_engine_openvino", "test_models_sources", "test_install", "test_store_faults",
            "test_placement_live", "test_chaos", "test_models_adapters", "test_bench_devices", "test_away", "test_endpoint", "test_models_forms")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, the others as they were."""
    rank = {name: n for n, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


def pytest_collection_finish() -> None:
    """What was imported and collected stays: no collection of garbage has to look through it again, and engines collect at each unload."""
    gc.freeze()


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Torch computes on one thread for a module of tests: sums in another order are other sums."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
