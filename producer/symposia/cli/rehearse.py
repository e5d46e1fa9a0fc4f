"""``symposia rehearse``: a play over scripted replies, every prompt printed. No Redis, no S3, no model."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from symposia.cli import show
from symposia.cli.jobs import read_job, tell
from symposia.cli.options import AsJson
from symposia_shared.errors import BadInput
from symposia_shared.rehearsal import Script, ScriptLine, from_lines, rehearse
from symposia_shared.turns import Reply, Turn


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("rehearse", rich_help_panel="Jobs")(command)


def command(
    job: Annotated[Path, typer.Argument(help="A job as JSON or YAML.")],
    script: Annotated[Path, typer.Option(help='Replies, one JSON object a line: {"text": ...} or {"abstain": WHY}; "round" and "turn" place it.')],
    json: AsJson = False,
) -> None:
    """Play a job over scripted replies and print every prompt."""
    played = read_job(job).seeded(0)
    lines = from_lines(read_script(script))
    found = rehearse(played, lines if json else _aloud(lines)).result("rehearsal", played)
    tell(found, json=json)


def read_script(path: Path) -> list[ScriptLine]:
    """The replies in a JSONL file. Raises BadInput naming the line."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} cannot be read: {error}.", field="script", value=str(path), remedy="Check the path.") from None
    lines = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                lines.append(ScriptLine.parse(json_module.loads(line)))
            except (ValueError, TypeError) as error:
                raise BadInput(f"{path}, line {number}: {error}", field="script", value=line[:80]) from None
    return lines


def _aloud(script: Script) -> Script:
    """``script``, each prompt printed before its reply."""

    def reply(number: int, place: int, turn: Turn) -> Reply:
        show.out.print(Text(f"round {number}, turn {place}: {turn.member} ({turn.model})", style="bold"))
        for message in turn.messages:
            show.out.print(Text(f"[{message.role}] {message.content}"), soft_wrap=True)
        return script(number, place, turn)

    return reply
