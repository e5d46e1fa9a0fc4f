"""What is to be placed, and where: sizes, precision, traffic."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from symposia_shared.values import Value

Precision = Literal["float32", "bfloat16", "float16", "int8"]

#: bytes of a parameter; int8 beside a float scale for each group of 128 weights (openvino's default)
BYTES: dict[Precision, float] = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "int8": 1.0 + 4.0 / 128}

#: what a device of this kind computes in, unless a checkpoint or a device says otherwise
USUAL: dict[str, Precision] = {"cpu": "float32", "cuda": "bfloat16"}

Name = Annotated[str, Field(min_length=1, max_length=200)]


class Site(Value):
    """A pool and the device it is bound to."""

    pool: Name
    device: Name
    #: what weights and cache pools may fill together
    memory_bytes: int = Field(ge=1)
    #: tokens a second of a checkpoint of a billion parameters, all rows of its batch together; None: as fast as the others
    speed: float | None = Field(None, gt=0)
    #: what it computes in; None: float32 on a processor, bfloat16 on a GPU
    precision: Precision | None = None
    #: checkpoints it holds now, so that fewer are moved
    holds: tuple[str, ...] = ()
    threads: int | None = Field(None, ge=1)

    @property
    def computes_in(self) -> Precision:
        """The precision of a checkpoint that names none."""
        return self.precision or USUAL.get(self.device.split(":")[0], "float32")


class Demand(Value):
    """A checkpoint to be placed."""

    checkpoint: Name
    #: billions of parameters
    params_b: float = Field(gt=0)
    #: tokens a second that are asked of it, read and written
    traffic: float = Field(0.0, ge=0)
    precision: Precision | None = None
    #: bytes of weights and cache pool on any device; None: parameters × precision × (1 + ``cache_share``)
    bytes: int | None = Field(None, ge=1)
    #: of the weights' bytes, added for the cache pool where ``bytes`` is not given
    cache_share: float = Field(0.15, ge=0)
    #: on how many devices it must be to be placed at all
    copies: int = Field(1, ge=1)
    #: the pools it may live on; empty: any
    pools: tuple[str, ...] = ()
    #: where the size comes from, for the explanation
    source: str = "parameters"

    def bytes_on(self, site: Site) -> int:
        """What it fills of a site's memory."""
        if self.bytes is not None:
            return self.bytes
        return int(self.params_b * 1e9 * BYTES[self.on(site)] * (1 + self.cache_share))

    def on(self, site: Site) -> Precision:
        """The precision it has there."""
        return self.precision or site.computes_in

    def may(self, site: Site) -> bool:
        """Whether it may live there and the whole site would hold it."""
        return (not self.pools or site.pool in self.pools) and self.bytes_on(site) <= site.memory_bytes


class Problem(Value):
    """Demands and sites. Raises BadInput where a name is there twice, and where speeds are needed and missing."""

    sites: tuple[Site, ...] = Field(min_length=1)
    demands: tuple[Demand, ...] = ()

    @model_validator(mode="after")
    def _sound(self) -> Self:
        for what, names in (("pool", [s.pool for s in self.sites]), ("checkpoint", [d.checkpoint for d in self.demands])):
            if twice := _twice(names):
                raise ValueError(f"the {what} {twice!r} is there twice; name each once.")
        known = {s.pool for s in self.sites}
        for demand in self.demands:
            if unknown := [p for p in demand.pools if p not in known]:
                raise ValueError(f"{demand.checkpoint} may live on {unknown[0]!r}, which is no pool; those are {', '.join(sorted(known))}.")
        told = sum(s.speed is not None for s in self.sites)
        if told != len(self.sites) and (told or len({s.device.split(":")[0] for s in self.sites}) > 1):
            without = ", ".join(s.pool for s in self.sites if s.speed is None)
            raise ValueError(f"speeds differ between kinds of devices, and {without} names none; give every site its speed (tokens a second of a "
                             "checkpoint of a billion parameters, as `symposia models measure` or a benchmark found it), or none.")
        return self

    @property
    def absolute(self) -> bool:
        """Whether loads are shares of what a device can do, and not only of one another."""
        return self.sites[0].speed is not None


def _twice(names: Iterable[str]) -> str:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return ""
