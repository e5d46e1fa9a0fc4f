"""An embedding's numbers on the wire and in files: those of float32, in as few digits as give each back."""

from __future__ import annotations

from collections.abc import Iterable


def float32_digits(numbers: Iterable[float]) -> tuple[float, ...]:
    """``numbers`` to nine significant digits, by which every float32 is told from its neighbours (17 would be written else)."""
    return tuple(float(f"{x:.9g}") for x in numbers)
