"""``python -m symposia_worker.commands.pool``: a pool's program, as the stack and ``symposia worker`` start it."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import typer

from symposia_shared.errors import BadInput
from symposia_shared.ledger.desired import Assigned
from symposia_shared.settings import load
from symposia_worker.commands import run_as_program
from symposia_worker.engines.openai.endpoint import is_endpoint, key_in, pool_name
from symposia_worker.engines.protocol import EngineChoice, Mode
from symposia_worker.joining import joined, pool_name_here
from symposia_worker.placing.problem import Precision
from symposia_worker.placing.writing import PoolPart, read_placement
from symposia_worker.processes import on_endpoint, run_pool
from symposia_worker.program import PoolPlan
from symposia_worker.stack.amounts import bytes_of
from symposia_worker.stack.devices import memory_of


def command(
    name: str = typer.Option("", help="Unique among the workers of a deployment; default: pool-DEVICE, with --broker pool-DEVICE.HOST."),
    device: str = typer.Option("", help="cuda:0, cpu, or cpu:0, cpu:1 as shares of one machine; cuda:0+cuda:1 or cpu+disk for checkpoints larger "
                                        "than one; openai:http://HOST:PORT/v1 for an endpoint. Default: cpu."),
    memory: str = typer.Option("0", help="The device's memory budget, as in 4GB; 0: three quarters of the device's."),
    threads: int = typer.Option(0, help="Cores of the engine process; 0: all."),
    concurrency: int = typer.Option(32, min=1, max=4096, help="Turns held at once."),
    model: list[str] = typer.Option([], help="A checkpoint of the model store; may be given again. Of an endpoint: ID or ID=THEIR_ID; default: all."),
    precision: list[str] = typer.Option([], metavar="ID=PRECISION", help="What a --model is served in: float32, bfloat16, float16 or int8; may be "
                                        "given again. Default: what --mode says."),
    engine: EngineChoice = typer.Option("auto", help="auto: openvino on a CPU where the checkpoint has the form, else torch."),
    mode: Mode = typer.Option("exact", help="exact: torch's float32 tokens. fast: 8-bit weights, where the checkpoint has that form; bfloat16 on a GPU."),
    test_models: bool = typer.Option(False, help="Serve the scripted test/* checkpoints, too."),
    max_concurrency: int = typer.Option(0, min=0, max=4096, help="An endpoint's requests at once; 0: as many as --concurrency."),
    api_key_env: str = typer.Option("", help="The variable that holds an endpoint's key; default: SYMPOSIA_OPENAI_API_KEY, if it is set."),
    server: str = typer.Option("", help="vllm, llamacpp, ollama or openai (any other); default: found out."),
    context: int = typer.Option(8192, min=1, help="Tokens of an endpoint's models, where the server does not say."),
    broker: str = typer.Option("", help="redis://HOST:6379/0 of the deployment, without a password: that is in SYMPOSIA_BROKER_PASSWORD."),
    store: str = typer.Option("", help="http://HOST:8333/BUCKET or s3://BUCKET; its keys are in SYMPOSIA_S3__ACCESS_KEY and ..__SECRET_KEY."),
    placement: Path | None = typer.Option(None, help="A placement.json of `symposia plan --write`: device, memory, models and their precisions of --name."),
    origin: str = typer.Option("", hidden=True),
    dir: Path | None = typer.Option(None, help="The stack's folder; default: SYMPOSIA_DIR or ~/.symposia."),
) -> None:
    """Run a pool: one device, its models resident, batched across jobs. Redis and S3 come from SYMPOSIA_* or the stack's folder."""
    part = _part(placement, name)
    device = device or (part.device if part else "cpu")
    settings = joined(load(dir), broker=broker, store=store, environ=os.environ)
    budget = bytes_of(memory, field="--memory") if memory != "0" else part.memory_bytes if part else memory_of(device)
    usual = pool_name(device) if not broker else pool_name_here(pool_name(device), socket.gethostname())
    plan = PoolPlan(name=name or usual, device=device, holds=_holds(model, precision, part), test_models=test_models, concurrency=concurrency,
                    threads=threads or (part.threads if part else None) or os.cpu_count() or 1, memory_bytes=budget, origin=origin,
                    engine=engine, mode=mode)
    if is_endpoint(device):
        plan = on_endpoint(plan, key=key_in(os.environ, api_key_env or None), max_concurrency=max_concurrency or concurrency,
                           server=server or None, context=context)
    raise typer.Exit(run_pool(settings, plan))


def _holds(models: Sequence[str], precisions: Sequence[str], part: PoolPart | None) -> tuple[Assigned, ...]:
    """What the pool begins with: the models named, else what its written placement says. Raises BadInput."""
    given = {model: precision for model, _, precision in (p.rpartition("=") for p in precisions)}
    for model, precision in given.items():
        if model not in models or precision not in get_args(Precision):
            raise BadInput(f"{model}={precision} is no --model with a precision.", field="--precision", value=f"{model}={precision}",
                           remedy=f"Name one of the --model options and one of {', '.join(get_args(Precision))}.")
    if models:
        return tuple(Assigned(checkpoint=m, precision=given.get(m)) for m in models)
    return part.holds if part else ()


def _part(placement: Path | None, name: str) -> PoolPart | None:
    """What a written placement says of the pool; None where there is none."""
    return read_placement(placement).part(name, placement) if placement else None


if __name__ == "__main__":
    run_as_program(command)
