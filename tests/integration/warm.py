"""The command line, imported once and forked for each command: its imports take longer than nearly all that commands do.

Each command still has a process, an environment and streams of its own. ``python -m symposia`` itself is run by the tests that
name it: the README's, the install's, and every ``up`` and ``down``.
"""

from __future__ import annotations

import multiprocessing
import os
import pkgutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

import symposia.cli

_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload([
    *(module.name for module in pkgutil.walk_packages(symposia.cli.__path__, "symposia.cli.")),
    *(point.module for point in metadata.entry_points(group="symposia.commands")), "symposia.client", "symposia_shared.patterns", "boto3"])


def run(words: Sequence[str], environ: Mapping[str, str], *, stdin: str | None, timeout_s: float) -> subprocess.CompletedProcess[str]:
    """``symposia`` with these words, as ``subprocess.run`` would. Raises subprocess.TimeoutExpired."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "in").write_text(stdin or "")
        child = _forks.Process(target=_command, args=(list(words), dict(environ), folder))
        child.start()
        child.join(timeout_s)
        if child.exitcode is None:
            child.kill()
            child.join()
            raise subprocess.TimeoutExpired(list(words), timeout_s, (place / "out").read_bytes(), (place / "err").read_bytes())
        code = child.exitcode
        child.close()
        return subprocess.CompletedProcess(list(words), code, (place / "out").read_text(), (place / "err").read_text())


def _command(words: list[str], environ: dict[str, str], folder: str) -> None:
    for number, name in enumerate(("in", "out", "err")):
        opened = os.open(f"{folder}/{name}", os.O_RDWR | os.O_CREAT, 0o600)
        os.dup2(opened, number)
        os.close(opened)
    sys.stdin, sys.stdout, sys.stderr = (os.fdopen(number, mode, encoding="utf-8", closefd=False) for number, mode in enumerate("rww"))
    os.environ.clear()
    os.environ.update(environ)
    sys.argv = ["symposia", *words]
    symposia.cli.main()
