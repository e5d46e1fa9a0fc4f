"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Folder = Annotated[Path | None, typer.Option("--dir", help="The stack's folder; default: SYMPOSIA_DIR or ~/.symposia.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print facts as JSON, and nothing else, on standard output.")]
Model = Annotated[str, typer.Option("--model", "-m", help="The checkpoint to ask.")]
Timeout = Annotated[float | None, typer.Option(help="Seconds to wait; the job goes on after them.")]
NoWait = Annotated[bool, typer.Option("--no-wait", help="Print the job's id and return.")]
Temperature = Annotated[float | None, typer.Option(help="0 is greedy.")]
MaxTokens = Annotated[int | None, typer.Option(help="At most so many new tokens.")]
Seed = Annotated[int | None, typer.Option(help="Fixes every draw of the job.")]
IdempotencyKey = Annotated[str | None, typer.Option(help="The same key and job, submitted again, is the same job; another job under it is refused.")]
Reuse = Annotated[bool, typer.Option("--reuse", help="Take the reply of an equal earlier question where one is kept, and keep this one.")]
