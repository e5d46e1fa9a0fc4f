"""``symposia info``: where the stack of a folder is, and what runs in it."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import Any

from symposia.cli.options import AsJson, Folder
from symposia_shared.errors import StackUnavailable, SymposiaError
from symposia_shared.settings import CREDENTIALS

#: what ``--json`` prints of each process
COLUMNS = ("role", "pid", "device")


def info(dir: Folder = None, as_json: AsJson = False) -> None:
    """Print where the folder's stack is and what runs in it; exit 3 where none runs."""
    folder = stack_folder(dir)
    facts = running(folder)
    facts["pools"] = pools(folder)
    if as_json:
        print(json.dumps(facts))
        return
    from rich.console import Console
    from rich.table import Table

    console = Console(soft_wrap=True, highlight=False)
    console.print(f"The stack in {folder} is {facts['state']}.", markup=False)
    for name in ("broker", "store", "api", "flower", "credentials_file"):
        if facts[name]:
            console.print(f"{name.removesuffix('_file'):<12} {facts[name]}", markup=False)
    table = Table(*COLUMNS)
    for process in facts["processes"]:
        table.add_row(*(str(process[c]) if process[c] is not None else "" for c in COLUMNS))
    console.print(table)
    for pool in facts["pools"]:
        if pool["idle_because"]:
            console.print(f"{pool['name']} takes no turns: {pool['idle_because']}", markup=False)
        elif pool["spooled"]:
            console.print(f"{pool['name']} holds {pool['spooled']} replies on disk until S3 takes them", markup=False)


def pools(folder: Path) -> list[dict[str, Any]]:
    """What the pools last said of themselves: name, device, turns held, replies spooled, and why they take no turns; [] where Redis is away."""
    from symposia_shared.ledger import Ledger
    from symposia_shared.settings import load

    try:
        settings = load(folder)
        workers = Ledger(settings.broker, settings.prefix, timeout_s=2.0).workers()
    except SymposiaError:
        return []
    return [{"name": name, "device": w.get("device"), "held": w.get("held", 0), "spooled": w.get("spooled", {}).get("replies", 0),
             "idle_because": w.get("idle_because", "")} for name, w in sorted(workers.items()) if w.get("role") == "pool"]


def stack_folder(dir: Path | None) -> Path:
    """The folder of ``--dir``, of SYMPOSIA_DIR, or the default. No other setting is read: one that is wrong does not hide it."""
    return Path(dir or os.environ.get("SYMPOSIA_DIR") or Path.home() / ".symposia").expanduser().absolute()


def running(folder: Path) -> dict[str, Any]:
    """The facts of the stack that runs in ``folder``, as its supervisor last wrote them. URLs carry no secrets.

    ``processes`` names broker, store, coordinator, pools, their engines and Flower; a pid is None while a part is started again.
    Raises StackUnavailable where no supervisor holds the folder (a killed one leaves its file, but not its lock).
    """
    if not _held(folder / "lock"):
        raise StackUnavailable(f"No stack runs in {folder}. Start one with `symposia up`, or name its folder with --dir or SYMPOSIA_DIR.")
    try:
        stored = json.loads((folder / "stack.json").read_text())
        processes = [{column: process[column] for column in COLUMNS} for process in stored["processes"]]
        facts = {name: stored[name] for name in ("state", "broker", "store", "api", "flower")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StackUnavailable(f"A stack is starting or stopping in {folder}, and has not said what runs ({error}). Ask again.") from None
    return {**facts, "credentials_file": str(folder / CREDENTIALS), "processes": processes}


def _held(lock: Path) -> bool:
    try:
        fd = os.open(lock, os.O_RDONLY)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise StackUnavailable(f"{lock} cannot be read ({error.strerror}). Name the folder of a stack of your own with --dir.") from None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False
