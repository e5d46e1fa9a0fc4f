"""``python -m symposia_worker.commands.pool``: a pool's program, as the stack and ``symposia worker`` start it."""

from __future__ import annotations

import os
from pathlib import Path

import typer

from symposia_shared.settings import load
from symposia_worker.commands import run_as_program
from symposia_worker.engines.protocol import EngineChoice, Mode
from symposia_worker.processes import PoolPlan, run_pool


def command(
    name: str = typer.Option("", help="Unique among the workers of a deployment; default: pool-DEVICE."),
    device: str = typer.Option("cpu", help="cuda:0, cpu, or cpu:0, cpu:1 as shares of one machine."),
    memory: int = typer.Option(0, help="The device's memory budget in bytes; 0: three quarters of the machine's."),
    threads: int = typer.Option(0, help="Cores of the engine process; 0: all."),
    concurrency: int = typer.Option(32, min=1, max=4096, help="Turns held at once."),
    model: list[str] = typer.Option([], help="A checkpoint of the model store; may be given again."),
    engine: EngineChoice = typer.Option("auto", help="auto: openvino on a CPU where the checkpoint has the form, else torch."),
    mode: Mode = typer.Option("exact", help="exact: torch's float32 tokens. fast: 8-bit weights, where the checkpoint has that form."),
    test_models: bool = typer.Option(False, help="Serve the scripted test/* checkpoints, too."),
    origin: str = typer.Option("", hidden=True),
    dir: Path | None = typer.Option(None, help="The stack's folder; default: SYMPOSIA_DIR or ~/.symposia."),
) -> None:
    """Run a pool: one device, its models resident, batched across jobs. Redis and S3 come from SYMPOSIA_* or the stack's folder."""
    plan = PoolPlan(name=name or f"pool-{device.replace(':', '-')}", device=device, models=tuple(model), test_models=test_models,
                    concurrency=concurrency, threads=threads or os.cpu_count() or 1, memory_bytes=memory or None, origin=origin,
                    engine=engine, mode=mode)
    raise typer.Exit(run_pool(load(dir), plan))


if __name__ == "__main__":
    run_as_program(command)
