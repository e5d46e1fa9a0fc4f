"""Exported forms of tiny checkpoints, made once per test run and shared by its processes' files."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from tiny import tiny_checkpoint


@cache
def exported(root: Path, architecture: str) -> Path:
    """A folder with ``torch`` (the checkpoint), ``exact`` and ``fast``. The exporter runs in this process: its imports take most of its time."""
    from symposia_worker.families.export import export

    folder = root / architecture
    tiny_checkpoint(folder / "torch", architecture)
    reports = export(folder / "torch", folder, threads=1)
    assert [r.refused for r in reports] == [None, None]
    return folder
