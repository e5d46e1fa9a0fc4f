"""``python -m symposia_worker.commands.coordinator``: the coordinator's program, as the stack starts it."""

from __future__ import annotations

import typer

from symposia_shared.settings import load
from symposia_worker.commands import run_as_program
from symposia_worker.processes import run_coordinator


def command(name: str = typer.Option("coordinator", help="Unique among the workers of a deployment.")) -> None:
    """Run a coordinator: it opens jobs, closes rounds and commits results. It never holds a model."""
    raise typer.Exit(run_coordinator(load(), name=name))


if __name__ == "__main__":
    run_as_program(command)
