"""One thing `symposia doctor` looks at."""

from __future__ import annotations

import re
from typing import Literal

from symposia_shared.values import Value

Status = Literal["ok", "warn", "fail"]
MIB = 1024 * 1024


class Check(Value):
    """One thing looked at: what was found, and what to do where it is not in order."""

    name: str
    status: Status
    found: str
    remedy: str = ""


def numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: ``5.7.0rc1`` is (5, 7, 0)."""
    found = []
    for part in version.split("."):
        digits = re.match(r"\d*", part)
        if digits is None or not digits[0]:
            break
        found.append(int(digits[0]))
    return tuple(found)
