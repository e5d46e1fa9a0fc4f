"""Exported forms of tiny checkpoints, made once per test run: xdist's workers have one folder of them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from catalogue_tiny import EIGHTEEN, plain
from symposia_worker.models.locks import locked
from tiny import tiny_checkpoint


def exported(folders: pytest.TempPathFactory, architecture: str) -> Path:
    """A folder with ``torch`` (the checkpoint), ``exact`` and ``fast``, to be read only. ``architecture``: ``t5``, or one that ``tiny_checkpoint`` makes.

    The exporter runs in this process: its imports take most of its time.
    """
    ours = folders.getbasetemp()
    folder = (ours.parent if "PYTEST_XDIST_WORKER" in os.environ else ours) / "forms" / architecture
    with locked(folder.with_suffix(".lock")):
        if not (folder / "whole").exists():
            _export(folder, architecture)
            (folder / "whole").touch()
    return folder


def _export(folder: Path, architecture: str) -> None:
    from symposia_worker.families.export import export

    folder.mkdir()
    if architecture == "t5":
        plain(next(c for c in EIGHTEEN if c.slug == "codet5-large-ntp-py"), folder)[0].rename(folder / "torch")
    else:
        tiny_checkpoint(folder / "torch", architecture)
    reports = export(folder / "torch", folder, threads=1)
    assert [r.refused for r in reports] == [None, None]
