"""Exported forms of tiny checkpoints, made once per test run and shared by its processes' files."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from catalogue_tiny import EIGHTEEN, plain
from tiny import tiny_checkpoint


@cache
def exported(root: Path, architecture: str) -> Path:
    """A folder with ``torch`` (the checkpoint), ``exact`` and ``fast``. ``architecture``: ``t5``, or one that ``tiny_checkpoint`` makes.

    The exporter runs in this process: its imports take most of its time.
    """
    from symposia_worker.families.export import export

    folder = root / architecture
    if architecture == "t5":
        plain(next(c for c in EIGHTEEN if c.slug == "codet5-large-ntp-py"), folder)[0].rename(folder / "torch")
    else:
        tiny_checkpoint(folder / "torch", architecture)
    reports = export(folder / "torch", folder, threads=1)
    assert [r.refused for r in reports] == [None, None]
    return folder
