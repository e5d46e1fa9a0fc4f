"""The devices a stack starts pools on: shares of this machine's processor and memory, or GPUs."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from symposia_shared.errors import BadInput
from symposia_worker.engines.openai.endpoint import Endpoint, is_endpoint, pool_name
from symposia_worker.stack.amounts import bytes_of, shown

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
    """The devices of ``cpu``, ``cpu:0=4GB,cpu:1``, ``cuda:0,cuda:1``, ``cuda:0+cuda:1`` or endpoints, each with its budget if one is named.

    Those on the processor share its cores, and those of them without a budget share evenly what the others leave of its memory.
    Raises BadInput for a name that is no device, one given twice, and budgets that are more than the memory.
    """
    named = [_named(part.strip()) for part in text.split(",") if part.strip()]
    names = [name for name, _ in named]
    if not names or len(set(names)) != len(names):
        raise BadInput(f"The devices {text!r} name none, or one twice.", field="--devices", value=text, remedy="Name each device once.")
    on_cpu = [budget for name, budget in named if name.startswith("cpu")]
    threads = _divided(cores or usable_cores(), len(on_cpu))
    even = _even(on_cpu, memory_bytes or usable_memory(), text)
    made, place = [], 0
    for name, budget in named:
        if name.startswith("cpu"):
            made.append(DeviceShare(name, threads=threads[place], memory_bytes=budget or even))
            place += 1
        else:
            made.append(DeviceShare(name, memory_bytes=budget))
    return tuple(made)


def _named(part: str) -> tuple[str, int | None]:
    """A device and its budget; ``cpu`` is ``cpu:0``."""
    if is_endpoint(part):
        Endpoint.of_device(part)  # for its errors
        return part, None
    name, equals, budget = part.partition("=")
    name = name.strip()
    if not re.fullmatch(r"cpu(:\d{1,3})?|cuda(:\d{1,3})?|cpu(:\d{1,3})?\+disk|cuda:\d{1,3}(\+cuda:\d{1,3})+", name):
        raise BadInput(f"{name!r} is no device.", field="--devices", value=name,
                       remedy="Give cpu, cpu:0,cpu:1, cuda:0,cuda:1, cuda:0+cuda:1 for one that is two, or openai:http://HOST:PORT/v1; "
                              "a budget is put behind it, as in cpu:0=4GB.")
    return name if re.search(r"[:+]", name) else name + ":0", bytes_of(budget, field="--devices") if equals else None


def _divided(cores: int, pools: int) -> list[int]:
    """Threads of each: the cores shared out, at least one each."""
    whole, rest = divmod(cores, max(1, pools))
    return [max(1, whole + (n < rest)) for n in range(pools)]


def _even(budgets: Sequence[int | None], memory_bytes: int, text: str) -> int:
    """What one that names no budget has: an even part of the share of the memory that is left."""
    given = sum(b for b in budgets if b)
    if given > memory_bytes:
        raise BadInput(f"The budgets of {text!r} are {shown(given)} together, and this machine has {shown(memory_bytes)}.", field="--devices",
                       value=text, remedy="Name smaller budgets.")
    without = budgets.count(None)
    left = int((memory_bytes * CPU_MEMORY_SHARE - given) / max(1, without))
    if without and left <= 0:
        raise BadInput(f"The budgets of {text!r} leave nothing of the {shown(memory_bytes * CPU_MEMORY_SHARE)} that pools may fill.",
                       field="--devices", value=text, remedy="Name a budget for each device, or smaller ones.")
    return left


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


def memory_of(device: str) -> int | None:
    """What a pool may fill of a device where no budget is named: three quarters of it. None: that of the endpoint or another's to say.

    A GPU's is asked of its driver (``nvidia-smi``), so that no CUDA context is made here. Raises BadInput where it does not say.
    """
    if not device.startswith("cuda"):
        return None
    numbers = [_physical(name.partition(":")[2] or "0") for name in device.split("+")]
    query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits", "--id=" + ",".join(numbers)]
    try:
        ran = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
        total = sum(int(line) for line in ran.stdout.split()) * 2**20
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise BadInput(f"the memory of {device} cannot be read ({error}).", field="--memory", value=device,
                       remedy="Name it: --memory 20GB, or --devices cuda:0=20GB.") from None
    return total * 3 // 4


def _physical(number: str) -> str:
    """What the driver calls the GPU that CUDA calls ``number`` here."""
    visible = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return visible[int(number)] if int(number) < len(visible) else number
