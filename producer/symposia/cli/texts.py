"""``embed`` and ``score``: what a checkpoint makes of texts that are there already."""

from __future__ import annotations

import json as jsons
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from symposia.cli import show
from symposia.cli.jobs import prompt_text
from symposia.cli.options import AsJson, Folder, Model, Timeout
from symposia.client import Client
from symposia_shared.errors import BadInput
from symposia_shared.results import Score


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.command(rich_help_panel="Jobs")(embed)
    app.command(rich_help_panel="Jobs")(score)


def embed(
    texts: Annotated[list[str] | None, typer.Argument(metavar="TEXT…", help="The texts.", show_default=False)] = None,
    file: Annotated[Path | None, typer.Option(help="A text per line; - reads standard input. Blank lines are left out.")] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="A checkpoint that can embed; default: the one that is served.")] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Write lines {index, text, embedding} there.")] = None,
    timeout: Timeout = None, json: AsJson = False, dir: Folder = None,
) -> None:
    """Turn texts into vectors of length one."""
    asked = [*(texts or ()), *(_lines(file) if file else ())]
    if not asked:
        raise BadInput("there is no text to embed.", field="texts", remedy="Give texts, or --file with a text per line.")
    with Client(dir) as client:
        chosen = model or _embedder(client)
        vectors = client.embed(asked, model=chosen, timeout=timeout)
    if output is not None:
        _write(output, asked, vectors)
    if json:
        show.facts({"model": chosen, "dimensions": len(vectors[0]), "count": len(vectors)} | ({} if output else {"vectors": vectors}))
    elif output is None:
        show.table(["text", "vector"], [[show.short(t), _shown(v)] for t, v in zip(asked, vectors, strict=True)])
    else:
        print(f"{len(vectors)} vectors of {len(vectors[0])} dimensions by {chosen} are in {output}")


def score(
    text: Annotated[str, typer.Argument(help="The text whose log-probability is asked; - reads standard input.")],
    model: Model,
    given: Annotated[str | None, typer.Option(help="The prompt it answers; left out, the text stands by itself.")] = None,
    timeout: Timeout = None, json: AsJson = False, dir: Folder = None,
) -> None:
    """How likely a model finds a text: the sum and the mean of its tokens' natural log-probabilities."""
    with Client(dir) as client:
        found = client.score(prompt_text(text), model=model, given=given, timeout=timeout)
    if json:
        show.facts({"model": model, "given": given, **found.model_dump(mode="json")})
    else:
        show.table(["", ""], _score_rows(found))


def _score_rows(found: Score) -> list[list[str]]:
    return [["total", f"{found.total:.4f}"], ["mean", f"{found.mean:.4f}"], ["tokens", str(len(found.tokens))]]


def _lines(path: Path) -> list[str]:
    try:
        text = sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} cannot be read: {error}.", field="file", value=str(path), remedy="Name a UTF-8 file with a text per line.") from None
    return [line for line in text.split("\n") if line.strip()]


def _embedder(client: Client) -> str:
    """The one checkpoint served that can embed. Raises BadInput where there is none, or more than one."""
    able = sorted(m for m, place in client.ledger.placed().items() if "embed" in (place.get("capabilities") or ()) and m != "test/*")
    if len(able) != 1:
        raise BadInput(f"{len(able) or 'no'} checkpoints that can embed are served{': ' + ', '.join(able) if able else ''}.", field="model",
                       remedy="Name one with --model.")
    return able[0]


def _write(path: Path, texts: list[str], vectors: list[list[float]]) -> None:
    """All lines or none: written beside, then given its name."""
    beside = path.with_name(path.name + ".part")
    try:
        with beside.open("w", encoding="utf-8") as out:
            for index, (text, vector) in enumerate(zip(texts, vectors, strict=True)):
                out.write(jsons.dumps({"index": index, "text": text, "embedding": vector}, ensure_ascii=False) + "\n")
        os.replace(beside, path)
    except OSError as error:
        raise BadInput(f"{path} cannot be written: {error.strerror}.", field="output", value=str(path), remedy="Name another file.") from None


def _shown(vector: list[float]) -> str:
    return " ".join(f"{x:.4f}" for x in vector[:6]) + (f" … ({len(vector)})" if len(vector) > 6 else "")
