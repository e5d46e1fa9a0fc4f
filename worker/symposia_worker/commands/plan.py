"""``symposia plan``: which checkpoints on which devices, why, and into force at run time."""

from __future__ import annotations

import json as jsons
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from symposia_worker.commands import run_as_program

if TYPE_CHECKING:
    from symposia_shared.ledger import Ledger
    from symposia_worker.placing.asking import Live
    from symposia_worker.placing.problem import Precision, Problem
    from symposia_worker.placing.solution import Plan


def command(
    devices: Annotated[str, typer.Option("--devices", help="cpu:0=4GB,cpu:1=4GB,cuda:0=24GB; default: the file's, else the pools that are up.")] = "",
    model: Annotated[list[str] | None, typer.Option("--model", help="ID or ID=TOKENS_A_SECOND; may be given again. Default: the file's, else all "
                                                                    "that are served or asked.")] = None,
    file: Annotated[Path | None, typer.Option("--file", "-f", help="Devices and checkpoints in TOML, YAML or JSON.")] = None,
    speed: Annotated[list[str] | None, typer.Option("--speed", help="DEVICE=TOKENS_A_SECOND of a checkpoint of a billion parameters, as in "
                                                                    "cpu=60; needed where devices are of several kinds.")] = None,
    precision: Annotated[str | None, typer.Option("--precision", help="float32, bfloat16, float16 or int8; default: what each device computes in.")] = None,
    copies: Annotated[int, typer.Option("--copies", min=1, help="On how many devices each checkpoint must be at least.")] = 1,
    hours: Annotated[float, typer.Option("--hours", min=0.2, max=24, help="Live traffic is taken over so many hours.")] = 1.0,
    time_limit: Annotated[float, typer.Option("--time-limit", min=1, help="Seconds the solver may take.")] = 30.0,
    write: Annotated[Path | None, typer.Option("--write", help="A folder for placement.json and compose.pools.yaml.")] = None,
    svg: Annotated[Path | None, typer.Option("--svg", help="Draw it there.")] = None,
    apply: Annotated[bool, typer.Option("--apply", help="Put it in Redis as the desired placement: pools reconcile as they run.")] = False,
    wait: Annotated[float, typer.Option("--wait", min=0, help="With --apply: seconds to wait until the pools that are up have reconciled.")] = 0.0,
    release: Annotated[bool, typer.Option("--release", help="Take the desired placement back: pools serve what they were started with.")] = False,
    status: Annotated[bool, typer.Option("--status", help="Only tell how far the pools are with the desired placement.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON, and nothing else, on standard output.")] = False,
    dir: Annotated[Path | None, typer.Option("--dir", help="The stack's folder; default: SYMPOSIA_DIR or ~/.symposia.")] = None,
) -> None:
    """Place checkpoints on devices by size, precision and traffic; say why; draw, write or apply it."""
    from symposia_worker.placing import drawing, explaining, writing
    from symposia_worker.placing.asking import Flags, problem
    from symposia_worker.placing.reading import Written, read
    from symposia_worker.placing.solving import solved

    if status or release:
        _standing(dir, release=release, as_json=as_json, wait_s=wait)
        return
    flags = Flags(devices=devices, models=tuple(model or ()), speeds=tuple(speed or ()), precision=_precision(precision), copies=copies)
    asked = problem(flags, read(file) if file else Written(), _live(dir, hours, needed=apply or not (devices or file)))
    plan = solved(asked, time_limit_s=time_limit)
    if as_json:
        print(jsons.dumps({"plan": plan.model_dump(), "why": explaining.explained(asked, plan)}))
    else:
        _show(asked, plan)
    said: list[str] = []
    if svg is not None:
        svg.write_text(drawing.svg(asked, plan), encoding="utf-8")
        said.append(f"drawn in {svg}")
    if write is not None:
        said.append("written to " + " and ".join(map(str, writing.write(write, asked, plan))))
    if apply:
        said.append(_apply(dir, asked, plan, wait_s=wait))
    if not as_json:
        print("\n".join(said))


def _show(asked: Problem, plan: Plan) -> None:
    from rich.console import Console

    from symposia_worker.placing import drawing, explaining

    console = Console(highlight=False)
    console.print(drawing.drawn(asked, plan))
    for line in explaining.explained(asked, plan):
        print(f"- {line}")


def _live(dir: Path | None, hours: float, *, needed: bool) -> Live:
    """What the deployment says. Where a file or flags say all, one that is away or none is no error."""
    from symposia_shared.errors import SymposiaError
    from symposia_shared.ledger.traffic import Traffic
    from symposia_shared.settings import load
    from symposia_shared.standing import alive
    from symposia_shared.store import Store
    from symposia_worker.models.manifest import Manifest
    from symposia_worker.models.store import ModelStore
    from symposia_worker.placing.asking import Live

    def manifest(model: str) -> Manifest | None:
        try:
            return ModelStore(Store(load(dir).s3)).sound(model)
        except SymposiaError:
            if needed:
                raise
            return None

    try:
        ledger = _ledger(dir)
        return Live(pools=alive(ledger.workers(), "pool"), placed=ledger.placed(), traffic=Traffic(ledger).rates(over_s=hours * 3600), manifest=manifest)
    except SymposiaError:
        if needed:
            raise
        return Live(manifest=manifest)


def _ledger(dir: Path | None) -> Ledger:
    from symposia_shared.ledger import Ledger
    from symposia_shared.settings import load

    settings = load(dir)
    return Ledger(settings.broker, settings.prefix)


def _apply(dir: Path | None, asked: Problem, plan: Plan, *, wait_s: float) -> str:
    from symposia_shared.ledger.desired import Desired
    from symposia_worker.placing.writing import assigned

    ledger = _ledger(dir)
    version = Desired(ledger).write({site.pool: assigned(plan, site) for site in asked.sites})
    return "\n".join([f"in force as version {version}", *_reconciled(ledger, version, wait_s)])


def _standing(dir: Path | None, *, release: bool, as_json: bool, wait_s: float) -> None:
    from symposia_shared.ledger.desired import Desired

    ledger = _ledger(dir)
    desired = Desired(ledger)
    version = desired.write({}) if release else desired.version
    lines = _reconciled(ledger, version, wait_s)
    if as_json:
        print(jsons.dumps({"version": version, "desired": {p: [a.checkpoint for a in rows] for p, rows in desired.all()[1].items()}, "pools": lines}))
    else:
        print("\n".join([f"desired placement: version {version}", *lines]))


def _reconciled(ledger: Ledger, version: int, wait_s: float) -> list[str]:
    """How far each pool is, once all that are up are there or ``wait_s`` seconds have passed."""
    from symposia_shared.ledger.desired import Desired
    from symposia_shared.standing import alive

    until = time.monotonic() + wait_s
    while True:
        up = alive(ledger.workers(), "pool")
        if time.monotonic() >= until or all(w.get("placement") == version for w in up):
            break
        time.sleep(0.2)
    named = Desired(ledger).all()[1]
    lines = [_line(w, version, ledger) for w in up]
    return [*lines, *(f"{pool} is away; it reads the placement when it comes back" for pool in named if pool not in {w["name"] for w in up})]


def _line(beat: dict[str, Any], version: int, ledger: Ledger) -> str:
    from symposia_shared.ledger.desired import Desired

    name = str(beat["name"])
    refused = [f"{model}: {why}" for model, why in Desired(ledger).refusals(name).items()]
    there = "is at this version" if beat.get("placement") == version else f"is at version {beat.get('placement', 0)}"
    return f"{name} {there}, holds {', '.join(beat.get('models', ())) or 'nothing'}" + (f"; refused: {'; '.join(refused)}" if refused else "")


def _precision(name: str | None) -> Precision | None:
    from symposia_shared.errors import BadInput
    from symposia_worker.placing.problem import BYTES

    for known in BYTES:
        if name == known:
            return known
    if name is None:
        return None
    raise BadInput(f"{name!r} is no precision.", field="--precision", value=name, remedy=f"Give one of {', '.join(BYTES)}.")


if __name__ == "__main__":
    run_as_program(command)
