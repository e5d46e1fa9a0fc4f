"""What machine this is, read from the system."""

from __future__ import annotations

import datetime
import os
import platform
from pathlib import Path

#: instruction sets that decide how fast matrices are multiplied
_TOLD = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_tile", "amx_int8", "amx_bf16", "asimd", "sve", "bf16", "i8mm")


def described() -> dict[str, str]:
    """Cores, processor, instruction sets, memory, system, load at the moment."""
    cpu = _cpu()
    flags = cpu.get("flags", cpu.get("Features", "")).split()
    return {
        "date": f"{datetime.datetime.now(tz=datetime.UTC):%Y-%m-%d %H:%M} UTC",
        "processor": f"{cpu.get('model name', platform.processor() or platform.machine())}, {os.cpu_count()} cores",
        "instruction sets": " ".join(f for f in _TOLD if f in flags) or "none of those looked for",
        "memory": f"{_memory_bytes() / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "load before": " ".join(f"{x:.2f}" for x in os.getloadavg()),
    }


def busy_s() -> float:
    """CPU seconds all processes have used since the machine started."""
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
        return sum(int(fields[i]) for i in (0, 1, 2, 5, 6)) / os.sysconf("SC_CLK_TCK")  # user, nice, system, irq, softirq
    except OSError:
        return 0.0


def _cpu() -> dict[str, str]:
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n", 1)[0]
    except OSError:
        return {}
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first.splitlines())}


def _memory_bytes() -> int:
    return int(os.sysconf("SC_PAGE_SIZE")) * int(os.sysconf("SC_PHYS_PAGES"))
