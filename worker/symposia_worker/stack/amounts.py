"""Amounts of memory as people write them."""

from __future__ import annotations

import re

from symposia_shared.errors import BadInput

_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12, "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}


def bytes_of(text: str | int, *, field: str = "memory") -> int:
    """Bytes of ``4GB``, ``512 MiB`` or ``1000000``. Raises BadInput."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(text))
    amount = int(float(found[1]) * _UNITS.get(found[2].lower(), 0)) if found else 0
    if amount <= 0:
        raise BadInput(f"{text!r} is no amount of memory.", field=field, value=text, remedy="Write it as 4GB, 512MiB or in bytes.")
    return amount


def shown(amount: float) -> str:
    """``amount`` bytes with three digits and a unit."""
    for unit, size in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6)):
        if amount >= size:
            return f"{amount / size:.3g} {unit}" if amount < 100 * size else f"{amount / size:.0f} {unit}"
    return f"{amount / 1e3:.3g} kB"
