"""``symposia down``: stop the stack of a folder, and whatever a killed one left behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from symposia_shared.errors import StackUnavailable


def command(
    dir: Annotated[Path | None, typer.Option("--dir", help="The stack's folder; default: SYMPOSIA_DIR or ~/.symposia.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was stopped as JSON.")] = False,
) -> None:
    """Stop the stack of a folder in order; jobs and results stay. Nothing to stop is no error."""
    try:
        from symposia_worker.stack.stopping import down
    except ImportError:
        raise StackUnavailable("The embedded stack is not installed. Run `pip install 'symposia[local,worker,monitor]'`.") from None
    from symposia_worker.stack.folder import Folder

    folder = Folder.of(dir)
    ran, ended = down(folder)
    if as_json:
        print(json.dumps({"stopped": ran, "left_over": ended, "dir": str(folder.path)}))
    elif ran:
        print(f"The stack in {folder.path} has stopped.")
    elif ended:
        print(f"No stack ran in {folder.path}; {ended} processes that an earlier one had left were ended.")
    else:
        print(f"No stack runs in {folder.path}.")
