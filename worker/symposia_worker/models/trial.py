"""Checkpoints tried in a process of its own: torch stays out of this one, and so do a stranger's files out of our secrets."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from symposia_shared.catalogue import Capability
from symposia_shared.errors import BadInput, Damaged, Unavailable
from symposia_shared.values import Value

#: what the child is given of the environment: no credentials, no settings of ours
_PASSED = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "PYTHONPATH", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "SSL_CERT_FILE")

#: Two hours: a checkpoint of many gigabytes on a slow disk ends before that, one that hangs does not wait for ever.
_LIMIT_S = 7200.0


class Found(Value):
    """What a trial told of a checkpoint: see ``symposia_worker.families.probe.Loaded``."""

    architecture: str
    model_type: str
    context: int = Field(ge=1)
    vocab: int = Field(ge=1)
    capabilities: tuple[Capability, ...]
    bits_per_byte: float | None = None
    code_bits_per_byte: float | None = None


def probe(folder: Path, name: str, *, untrained: bool = False) -> Found:
    """What the checkpoint in ``folder`` is, after loading it plainly. Raises BadInput where it is refused.

    ``untrained``: bits per byte are measured and not judged.
    """
    return _run("probe", str(folder), json.dumps({"untrained": untrained}), name=name, read=[folder])


def convert(folder: Path, into: Path, name: str, *, without_template: bool = False, untrained: bool = False) -> Found:
    """Write the published ``folder`` plainly to ``into``, and what it is found to be then. Raises BadInput where it is refused."""
    options = {"without_template": without_template, "untrained": untrained}
    return _run("convert", str(folder), str(into), json.dumps(options), name=name, read=[folder], write=into)


def convert_gguf(file: Path, folder: Path, name: str) -> Found:
    """Write the GGUF ``file`` to ``folder`` as safetensors with its tokenizer, checked. Raises BadInput where it is refused."""
    return _run("gguf", str(file), str(folder), name=name, read=[file.parent], write=folder)


def adapter(folder: Path, base: Path, name: str, *, untrained: bool = False) -> Found:
    """What the LoRA adapter in ``folder`` is over the checkpoint in ``base``. Raises BadInput where it is refused."""
    return _run("adapter_trial", str(folder), str(base), json.dumps({"untrained": untrained}), name=name, read=[folder, base])


def _run(module: Literal["probe", "convert", "gguf", "adapter_trial"], *arguments: str, name: str, read: Sequence[Path], write: Path | None = None) -> Found:
    with tempfile.TemporaryDirectory(prefix="symposia-trial-") as scratch:
        writable = [Path(scratch), *([write] if write else [])]
        return _confined(f"symposia_worker.families.{module}", arguments, name=name, read=read, writable=writable)


def _confined(child: str, arguments: Sequence[str], *, name: str, read: Sequence[Path], writable: Sequence[Path]) -> Found:
    """Run ``child`` where the kernel lets it write only to ``writable``, read only Python, its libraries and ``read``, and open no socket."""
    scratch = str(writable[0])
    environment = {key: os.environ[key] for key in _PASSED if key in os.environ}
    environment |= {"OMP_NUM_THREADS": str(min(4, os.cpu_count() or 1)), "OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false",
                    "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    environment |= {"TMPDIR": scratch, "HOME": scratch, "HF_HOME": scratch, "XDG_CACHE_HOME": scratch}
    bounds = json.dumps({"read": [str(p.resolve()) for p in read], "write": [str(p.resolve()) for p in writable]})
    command = [sys.executable, "-m", "symposia_worker.models.confinement", bounds, child, *arguments]
    try:
        done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=_LIMIT_S,
                              check=False)
    except subprocess.TimeoutExpired:
        hours = f"{_LIMIT_S / 3600:.0f} hours"
        raise Unavailable(f"trying {name} took more than {hours} and was stopped. Try again on a faster machine.") from None
    lines = done.stdout.strip().splitlines()
    if done.returncode == 0 and lines:
        return Found.from_json(lines[-1])
    if done.returncode == 2 and lines:
        told = json.loads(lines[-1])
        raise BadInput(f"{name} was refused: {told['refused']}", field="model", value=name, remedy=told["remedy"])
    raise _broken(name, done.returncode, done.stderr)


def _broken(name: str, code: int, stderr: str) -> Exception:
    last = stderr.strip().splitlines()[-1] if stderr.strip() else "it said nothing"
    if "ModuleNotFoundError" in last:
        return BadInput(f"{name} cannot be tried here: {last}.", field="model", value=name,
                        remedy="Install it: pip install 'symposia[worker]'.")
    if code == -signal.SIGKILL:
        return Unavailable(f"trying {name} was killed, most likely for want of memory. Free some, or add it on a larger machine.")
    if "No space left" in last:
        return Unavailable(f"the disk is full: {last}. Free some, or put the cache on another disk (SYMPOSIA_CACHE).")
    return Damaged(f"{name} could not be loaded (exit {code}): {last}. Fetch it again; if it stays, report it with this line.")
