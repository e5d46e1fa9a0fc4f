"""``symposia doctor``: what is in order, what is not, and what to do about it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

from symposia.cli.doctor import machine, services
from symposia.cli.doctor.check import Check
from symposia.cli.info import stack_folder
from symposia.cli.options import AsJson, Folder
from symposia_shared.errors import SymposiaError, Unavailable
from symposia_shared.settings import Settings, load


def doctor(dir: Folder = None, as_json: AsJson = False) -> int:
    """Check Python, packages, broker, store, ports, devices and disk, and say what to do; exit 3 where a check fails."""
    found = list(checks(stack_folder(dir)))
    if as_json:
        print(json.dumps({"ok": all(c.status != "fail" for c in found), "checks": [c.model_dump() for c in found]}))
    else:
        _show(found)
    return Unavailable.exit_code if any(check.status == "fail" for check in found) else 0


def checks(folder: Path) -> Iterator[Check]:
    """All checks of the stack or deployment that ``folder`` and the environment name, in order."""
    yield machine.python()
    yield from machine.versions()
    yield from machine.extras()
    try:
        settings: Settings | None = load(folder)
    except (SymposiaError, KeyError, TypeError) as error:
        settings = None
        yield Check(name="settings", status="fail", found=str(error) or "the credentials file lacks a field",
                    remedy="Correct SYMPOSIA_*, or remove the credentials file and run `symposia up` again.")
    if settings is not None:
        yield from _guarded("broker", settings, services.broker_checks)
        yield from _guarded("store", settings, services.store_checks)
    yield machine.ports(folder)
    yield machine.devices()
    yield machine.cache(folder)


def _guarded(name: str, settings: Settings, look: Callable[[Settings], Iterator[Check]]) -> Iterator[Check]:
    try:
        yield from look(settings)
    except SymposiaError as error:
        yield Check(name=name, status="fail", found=str(error), remedy="Start it, then run `symposia doctor` again.")


def _show(found: list[Check]) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(soft_wrap=True, highlight=False)
    colours = {"ok": "green", "warn": "yellow", "fail": "red"}
    for check in found:
        line = Text.assemble((f"{check.status:<5}", colours[check.status]), f"{check.name:<26} {check.found}")
        console.print(line)
        if check.remedy:
            console.print(Text(f"     {check.remedy}", style="dim"))
