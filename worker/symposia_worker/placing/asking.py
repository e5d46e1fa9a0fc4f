"""What is to be placed, gathered from a file, from flags and from what the deployment says of itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from symposia_shared.errors import BadInput
from symposia_worker.models.manifest import Manifest
from symposia_worker.placing.problem import Demand, Precision, Problem, Site
from symposia_worker.placing.reading import Written, WrittenCheckpoint
from symposia_worker.placing.sizing import demand_of
from symposia_worker.stack.devices import shares


@dataclass(frozen=True, slots=True)
class Live:
    """What the deployment says: pools that are up, where checkpoints are served, what is asked of them, what is stored."""

    pools: Sequence[Mapping[str, Any]] = ()
    placed: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    #: tokens a second by checkpoint
    traffic: Mapping[str, float] = field(default_factory=dict)
    manifest: Callable[[str], Manifest | None] = lambda _: None


@dataclass(frozen=True, slots=True)
class Flags:
    """What was asked for on the command line; it has precedence over the file."""

    devices: str = ""
    #: ``ID`` or ``ID=TOKENS_A_SECOND``
    models: Sequence[str] = ()
    #: ``DEVICE=SPEED``; a device without its number stands for all of its kind
    speeds: Sequence[str] = ()
    precision: Precision | None = None
    copies: int = 1


def problem(flags: Flags, written: Written, live: Live) -> Problem:
    """The problem. Raises BadInput."""
    sites = _sites(flags, written, live)
    if not sites:
        raise BadInput("no device is named, and no pool is up.", field="--devices", remedy="Give --devices cpu:0=4GB,cpu:1=4GB or a file with [[devices]].")
    return Problem.parse({"sites": [s.model_dump() for s in sites], "demands": [d.model_dump() for d in _demands(flags, written, live)]})


def _sites(flags: Flags, written: Written, live: Live) -> list[Site]:
    holds = {str(w["name"]): tuple(m for m in w.get("models", ()) if not m.startswith("test/")) for w in live.pools}
    if flags.devices:
        found = [Site(pool=s.pool, device=s.device, memory_bytes=_known(s.memory_bytes, s.device), threads=s.threads) for s in shares(flags.devices)]
    elif written.devices:
        found = [d.site for d in written.devices]
    else:
        found = [Site(pool=str(w["name"]), device=str(w["device"]), memory_bytes=int(w["memory_bytes"])) for w in live.pools if w.get("memory_bytes")]
    speeds = _speeds(flags.speeds)
    return [s.model_copy(update={"speed": speeds.get(s.device, speeds.get(s.device.split(":")[0], s.speed)), "holds": holds.get(s.pool, ())}) for s in found]


def _demands(flags: Flags, written: Written, live: Live) -> list[Demand]:
    """Those of the file, then those of the flags; with neither, every checkpoint that is served or asked."""
    named = {c.id: c for c in written.checkpoints}
    for model in flags.models:
        name, equals, rate = model.partition("=")
        traffic = _number(rate, "--model", model) if equals else live.traffic.get(name, 0.0)
        named[name] = WrittenCheckpoint(id=name, traffic=traffic, precision=flags.precision, copies=flags.copies)
    if not named:
        names = sorted({*live.placed, *live.traffic})
        named = {n: WrittenCheckpoint(id=n, precision=flags.precision, copies=flags.copies) for n in names if not n.startswith(("test/", "check/"))}
    return [_demand(c, live) for c in named.values()]


def _demand(c: WrittenCheckpoint, live: Live) -> Demand:
    traffic = c.traffic or live.traffic.get(c.id, 0.0)
    if c.params_b is not None:
        return Demand(checkpoint=c.id, params_b=c.params_b, traffic=traffic, precision=c.precision, bytes=c.memory, copies=c.copies, pools=c.pools,
                      source="the file" if c.memory else "the file's parameters")
    found = demand_of(c.id, traffic=traffic, precision=c.precision, placed=live.placed, manifest=live.manifest, copies=c.copies, pools=c.pools)
    return found if c.memory is None else found.model_copy(update={"bytes": c.memory, "source": "the file"})


def _speeds(given: Sequence[str]) -> dict[str, float]:
    pairs = [text.rpartition("=") for text in given]
    return {device.strip(): _number(speed, "--speed", "=".join((device, speed))) for device, _, speed in pairs}


def _number(text: str, field: str, given: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise BadInput(f"{given!r} does not end in a number.", field=field, value=given, remedy="Write NAME=NUMBER, as in smollm2-135m=400.") from None


def _known(memory: int | None, device: str) -> int:
    if memory is None:
        raise BadInput(f"the memory of {device} is not known here.", field="--devices", value=device, remedy=f"Put it behind the name, as in {device}=24GB.")
    return memory
