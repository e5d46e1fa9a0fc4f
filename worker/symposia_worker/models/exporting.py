"""The exporter's process as we see it: its environment, its progress, what it told. Never torch."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from symposia_shared.catalogue import FormMode
from symposia_shared.errors import BadInput, Damaged, Unavailable
from symposia_shared.values import Value
from symposia_worker.families.forms import FormReport
from symposia_worker.models.store import Progress, silent

#: what the child is given of the environment: no credentials, no settings of ours
_PASSED = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "PYTHONPATH", "VIRTUAL_ENV", "LD_LIBRARY_PATH")

#: Two hours: a checkpoint of many gigabytes on a slow disk ends before that, one that hangs does not wait for ever.
_LIMIT_S = 7200.0


class Rate(Value):
    """What a measurement told."""

    tokens_per_s: float
    rows: int
    threads: int
    processor: str


def run_export(folder: Path, out: Path, *, name: str, threads: int, progress: Progress) -> tuple[tuple[FormReport, ...], str | None]:
    """Export the checkpoint in ``folder`` to ``out``; what was told of each form, or why none can be made. Raises Unavailable."""
    last = _run("export", [str(folder), str(out)], name=name, threads=threads, progress=progress)
    if "refused" in last:
        return (), f"{last['refused']} {last['remedy']}"
    return tuple(FormReport.parse(form) for form in last["forms"]), None


def run_measure(folder: Path, mode: FormMode, *, name: str, threads: int) -> Rate:
    """How fast the form in ``folder`` decodes here. Raises Unavailable or Damaged."""
    return Rate.parse(_run("measure", [str(folder), mode], name=name, threads=threads, progress=silent))


def _run(module: str, arguments: list[str], *, name: str, threads: int, progress: Progress) -> dict[str, Any]:
    """The last line of a child, those of progress passed on."""
    command = [sys.executable, "-P", "-m", "symposia_worker.imports", f"symposia_worker.families.{module}", *arguments, "--threads", str(threads)]
    last: dict[str, Any] = {}
    with tempfile.TemporaryFile("w+", errors="replace") as said, _child(command, said, threads) as child:
        for line in child.stdout or ():
            if line.startswith("{"):  # nncf draws its tables there, too
                last = json.loads(line)
                if "progress" in last:
                    progress(f"exporting {name}: {last['progress']}", 0, 0)
        code = child.wait()
        said.seek(0)
        lines = said.read().strip().splitlines()
    if code == 0 or (code == 2 and "refused" in last):
        return last
    raise _broken(name, code, lines[-1] if lines else "it said nothing")


@contextmanager
def _child(command: list[str], said: Any, threads: int) -> Iterator[subprocess.Popen[str]]:
    environment = {key: os.environ[key] for key in _PASSED if key in os.environ}
    environment |= {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1",
                    "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    child = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=said, text=True, errors="replace")
    limit = threading.Timer(_LIMIT_S, child.kill)
    limit.start()
    try:
        yield child
    finally:
        limit.cancel()
        child.kill()
        child.wait()
        if child.stdout is not None:
            child.stdout.close()


def _broken(name: str, code: int, last: str) -> Exception:
    if "ModuleNotFoundError" in last:
        return BadInput(f"{name} cannot be exported here: {last}.", field="model", value=name,
                        remedy="Install it: pip install 'symposia[openvino]'.")
    if code == -signal.SIGKILL:
        return Unavailable(f"the export of {name} was killed, for want of memory or after {_LIMIT_S / 3600:.0f} hours. "
                           "Export it on a larger machine: symposia models export.")
    if "No space left" in last:
        return Unavailable(f"the disk is full: {last}. Free some, or put the cache on another disk (SYMPOSIA_CACHE).")
    return Damaged(f"{name} could not be exported (exit {code}): {last}. It is served by torch; report this line.")
