"""The devices a stack starts pools on: shares of this machine's processor and memory, or GPUs."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from symposia_shared.errors import BadInput
from symposia_worker.engines.openai.endpoint import Endpoint, is_endpoint, pool_name

#: the part of the memory that pools on the processor may fill together; the rest is the system's and the services'
CPU_MEMORY_SHARE = 0.6


@dataclass(frozen=True, slots=True)
class DeviceShare:
    """A device and what a pool on it may use. ``threads`` and ``memory_bytes`` are None where the device itself says."""

    device: str
    threads: int | None = None
    memory_bytes: int | None = None

    @property
    def pool(self) -> str:
        """The pool's name, such as ``pool-cpu-0``."""
        return pool_name(self.device)


def shares(text: str, *, cores: int | None = None, memory_bytes: int | None = None) -> tuple[DeviceShare, ...]:
    """The devices of ``cpu``, ``cpu:0,cpu:1``, ``cuda:0,cuda:1`` or endpoints; those on the processor share cores and memory evenly.

    Raises BadInput for a name that is no device, or one given twice.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if is_endpoint(name):
            Endpoint.of_device(name)  # for its errors
        elif not re.fullmatch(r"cpu(:\d{1,3})?|cuda(:\d{1,3})?", name):
            raise BadInput(f"{name!r} is no device.", field="--devices", value=name,
                           remedy="Give cpu, cpu:0,cpu:1, cuda:0,cuda:1 or openai:http://HOST:PORT/v1.")
    names = [name if ":" in name else name + ":0" for name in names]
    if not names or len(set(names)) != len(names):
        raise BadInput(f"The devices {text!r} name none, or one twice.", field="--devices", value=text, remedy="Name each device once.")
    on_cpu = sum(name.startswith("cpu") for name in names)
    threads = max(1, (cores or usable_cores()) // max(1, on_cpu))
    memory = int((memory_bytes or usable_memory()) * CPU_MEMORY_SHARE / max(1, on_cpu))
    return tuple(DeviceShare(n, threads=threads, memory_bytes=memory) if n.startswith("cpu") else DeviceShare(n) for n in names)


def usable_cores() -> int:
    """The cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def usable_memory() -> int:
    """Bytes of memory: the machine's, or the container's where that is less."""
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return physical
    return min(physical, int(limit)) if limit.isdigit() else physical
