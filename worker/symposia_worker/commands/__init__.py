"""The worker's commands. Those the stack starts as programs of their own end in ``run_as_program``."""

from __future__ import annotations

import sys
from collections.abc import Callable


def run_as_program(command: Callable[..., None]) -> None:
    """Run a command as ``python -m`` does; one of our errors becomes its sentence and its exit code."""
    import typer

    from symposia_shared.errors import SymposiaError

    try:
        typer.run(command)
    except SymposiaError as error:
        print(f"{error.name}: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
