"""A placement as configuration: ``placement.json``, which pools read, and ``compose.pools.yaml``, a service a pool."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from symposia_shared.errors import BadInput
from symposia_shared.ledger.desired import Assigned
from symposia_shared.values import Value
from symposia_worker.placing.problem import Problem, Site
from symposia_worker.placing.solution import Plan

PLACEMENT, COMPOSE = "placement.json", "compose.pools.yaml"


class PoolPart(Value):
    """One pool of a written placement."""

    device: str
    memory_bytes: int
    threads: int | None = None
    holds: tuple[Assigned, ...] = ()


class WrittenPlacement(Value):
    """A placement as it is written, by pool."""

    pools: dict[str, PoolPart]

    @classmethod
    def of(cls, problem: Problem, plan: Plan) -> WrittenPlacement:
        """That of a plan."""
        return cls(pools={site.pool: PoolPart(device=site.device, memory_bytes=site.memory_bytes, threads=site.threads, holds=assigned(plan, site))
                          for site in problem.sites})

    def part(self, pool: str, where: object) -> PoolPart:
        """One pool's. Raises BadInput where it is not named."""
        if pool not in self.pools:
            raise BadInput(f"{where} has no pool {pool!r}; it has {', '.join(sorted(self.pools))}.", field="--placement", value=pool,
                           remedy="Name one of them with --name.")
        return self.pools[pool]


def assigned(plan: Plan, site: Site) -> tuple[Assigned, ...]:
    """What a pool is to hold, and as what, so that it fills what was planned."""
    return tuple(Assigned(checkpoint=p.checkpoint, bytes=p.bytes, precision=p.precision) for p in plan.on(site.pool))


def read_placement(path: Path) -> WrittenPlacement:
    """A written placement. Raises BadInput."""
    try:
        return WrittenPlacement.from_json(path.read_bytes())
    except OSError as error:
        raise BadInput(f"{path} cannot be read ({error.strerror}).", field="--placement", value=str(path)) from None


def write(folder: Path, problem: Problem, plan: Plan) -> tuple[Path, Path]:
    """Write both files into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    written = WrittenPlacement.of(problem, plan)
    paths = folder / PLACEMENT, folder / COMPOSE
    paths[0].write_text(json.dumps(json.loads(written.model_dump_json()), indent=2) + "\n", encoding="utf-8")
    paths[1].write_text(_HEAD + yaml.safe_dump(compose(written), sort_keys=False, width=140), encoding="utf-8")
    return paths


_HEAD = ("# Written by `symposia plan`: a service for each pool of a placement, in place of compose.yaml's one.\n"
         "#   docker compose -f compose.yaml -f compose.pools.yaml up --scale worker=0\n")


_SECRET = "${%s:?set it in .env}"  # noqa: S105 - a reference to one
#: compose.yaml's worker, written out: ``extends`` takes no service that depends on others (a test keeps the two alike)
_WORKER: dict[str, Any] = {
    "image": "symposia-worker", "restart": "unless-stopped", "init": True,
    "environment": {
        "SYMPOSIA_BROKER_URL": f"redis://worker:{_SECRET % 'SYMPOSIA_WORKER_PASSWORD'}@broker:6379/0",
        "SYMPOSIA_MESSAGE_KEY": _SECRET % "SYMPOSIA_MESSAGE_KEY", "SYMPOSIA_S3__ENDPOINT_URL": "http://store:8333",
        "SYMPOSIA_S3__ACCESS_KEY": "worker", "SYMPOSIA_S3__SECRET_KEY": _SECRET % "SYMPOSIA_WORKER_S3_KEY",
        "SYMPOSIA_S3__BUCKET": "symposia",
    },
    "depends_on": {"broker": {"condition": "service_healthy"}, "store": {"condition": "service_healthy"}},
    "cap_drop": ["ALL"], "security_opt": ["no-new-privileges:true"], "volumes": ["cache:/var/lib/symposia"], "stop_grace_period": "15s",
}


def compose(written: WrittenPlacement) -> dict[str, Any]:
    """The services. Each GPU is given to one container, in which it is cuda:0; those on the processor are told their threads."""
    return {"services": {pool: _service(pool, part) for pool, part in written.pools.items()}}


def _service(pool: str, part: PoolPart) -> dict[str, Any]:
    gpus = [name.split(":")[1] for name in part.device.split("+") if name.startswith("cuda:")]
    device = "+".join(f"cuda:{k}" for k in range(len(gpus))) if gpus else part.device
    command = ["python", "-m", "symposia_worker.commands.pool", "--name", pool, "--device", device, "--memory", str(part.memory_bytes)]
    command += ["--threads", str(part.threads)] if part.threads else []
    for held in part.holds:
        command += ["--model", held.checkpoint, *(["--precision", f"{held.checkpoint}={held.precision}"] if held.precision else [])]
    service: dict[str, Any] = {
        **_WORKER, "command": command,
        "healthcheck": {"test": ["CMD", "python", "-m", "symposia_worker.stack.pulse", pool], "interval": "10s", "timeout": "5s", "retries": 3,
                        "start_period": "300s"},
    }
    if gpus:
        service["deploy"] = {"resources": {"reservations": {"devices": [{"driver": "nvidia", "device_ids": gpus, "capabilities": ["gpu"]}]}}}
    return service
