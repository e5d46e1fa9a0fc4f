"""Untrusted Python, run by itself in a process that the kernel lets do nothing but compute.

A run has no network, no other process or thread, no signals, no environment, no file but the standard library's, to read;
it has limits on processor time, wall time, memory and output. All of it is the kernel's doing (resource limits, Landlock,
seccomp, no new privileges), none of it Python's, so nothing the program does inside Python can lift it; see
``confined``. Where the kernel lacks any of it, ``lacking`` says what, and nothing is run. It holds for root and without.

What it does not hide: whether a path exists and how big it is (``os.stat``), the machine's name, clock and load. What a
program reports about itself is its own word: compare its values, never trust a "passed" it prints.
"""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from symposia_shared.sandbox.confined import LACKING

_SCRIPT = Path(__file__).with_name("confined.py")
#: isolated as by -I, except that the one variable given is heard: with it equal programs see sets in equal order
_ISOLATED = ("-P", "-s", "-S", "-B")
_ENVIRONMENT = {"PYTHONHASHSEED": "0"}

#: ``ended``: by itself; ``time``: at a limit of processor or wall time; ``output``: it wrote too much; ``killed``: it
#: ended in another way, such as a crash or no memory for Python itself; ``lacking``: it was not run at all
HowEnded = Literal["ended", "time", "output", "killed", "lacking"]


@dataclass(frozen=True, slots=True)
class Limits:
    """What one run may use."""

    cpu_s: int = 5
    wall_s: float = 10.0
    #: wall time of each call
    call_s: float = 2.0
    memory_bytes: int = 512 * 2**20
    #: everything written, results included
    output_bytes: int = 2**20


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the program, or one call, came to: ``text`` is the canonical repr of a value, or the name of what was raised."""

    kind: Literal["ran", "value", "raised"]
    text: str


@dataclass(frozen=True, slots=True)
class Ran:
    """A run: how it ended, the outcomes (of the program, then of each call as far as it came), and what it printed."""

    how: HowEnded
    outcomes: tuple[Outcome, ...]
    printed: str


@lru_cache(maxsize=1)
def lacking() -> str | None:
    """What this machine lacks to run untrusted code, in words; None where nothing is lacking. Tried once, with a program."""
    if sys.platform != "linux":
        return f"untrusted code is run on Linux only, and this is {sys.platform}"
    ran = run("x = 1", ["x + 1"], limits=Limits(wall_s=30.0))
    if ran.how == "lacking":
        return ran.printed or "a means of confinement is lacking"
    if [o.text for o in ran.outcomes] != ["", "2"]:
        return f"a confined program does not run here ({ran.how}: {ran.printed[-200:]})"
    return None


def run(program: str, calls: Sequence[str] = (), *, limits: Limits | None = None) -> Ran:
    """Run ``program``, then evaluate each of ``calls`` in its names, confined. Never raises for what the program does."""
    limits = limits or Limits()
    task = {"program": program, "calls": list(calls), "cpu_s": limits.cpu_s, "memory_bytes": limits.memory_bytes, "call_s": limits.call_s}
    with subprocess.Popen(
        [sys.executable, *_ISOLATED, str(_SCRIPT)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=_ENVIRONMENT, cwd="/", close_fds=True, start_new_session=True,
    ) as child:
        try:
            how, results, printed = _attend(child, json.dumps(task).encode(), limits)
        finally:
            child.kill()
    if child.returncode == LACKING and not results:
        return Ran("lacking", (), printed.decode("utf-8", "replace"))
    if how == "ended" and child.returncode != 0:
        how = "time" if _used_its_time(child.returncode) else "killed"
    return Ran(how, tuple(_outcomes(results)), printed.decode("utf-8", "replace"))


def _attend(child: subprocess.Popen[bytes], task: bytes, limits: Limits) -> tuple[HowEnded, bytes, bytes]:
    """Give the child its task and hear it out, until it ends or passes a limit; what it wrote as results, and else."""
    assert child.stdin  # noqa: S101 - all three are pipes
    assert child.stdout  # noqa: S101
    assert child.stderr  # noqa: S101
    deadline = time.monotonic() + limits.wall_s
    heard = {child.stdout: bytearray(), child.stderr: bytearray()}
    unsent = memoryview(task)
    with selectors.DefaultSelector() as ready:
        for pipe in (child.stdin, *heard):
            os.set_blocking(pipe.fileno(), False)
            ready.register(pipe, selectors.EVENT_WRITE if pipe is child.stdin else selectors.EVENT_READ)
        how: HowEnded = "ended"
        while ready.get_map():
            left = deadline - time.monotonic()
            if left <= 0:
                how = "time"
                break
            for key, _ in ready.select(left):
                if key.fileobj is child.stdin:
                    unsent = unsent[_send(child, unsent):]
                    if not unsent:
                        ready.unregister(child.stdin)
                        child.stdin.close()
                    continue
                pipe = child.stdout if key.fileobj is child.stdout else child.stderr
                chunk = os.read(pipe.fileno(), 65536)
                heard[pipe] += chunk
                if not chunk:
                    ready.unregister(pipe)
            if sum(map(len, heard.values())) > limits.output_bytes:
                how = "output"
                break
    if how != "ended":
        child.kill()
    else:
        how = _wait(child, deadline)
    return how, bytes(heard[child.stdout]), bytes(heard[child.stderr][-10_000:])


def _wait(child: subprocess.Popen[bytes], deadline: float) -> HowEnded:
    """A program may close its pipes and go on."""
    try:
        child.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        child.kill()
        return "time"
    return "ended"


def _send(child: subprocess.Popen[bytes], unsent: memoryview) -> int:
    assert child.stdin  # noqa: S101 - it is a pipe
    try:
        return os.write(child.stdin.fileno(), unsent[:65536])
    except BlockingIOError:
        return 0
    except BrokenPipeError:
        return len(unsent)


def _used_its_time(returncode: int) -> bool:
    """Whether the kernel ended it: beyond the hard limit of processor time it kills."""
    return returncode in (-9, -24)


def _outcomes(results: bytes) -> list[Outcome]:
    """The lines that were written whole."""
    found = []
    for line in results.split(b"\n")[:-1]:
        try:
            kind, text = json.loads(line)
        except ValueError:
            break
        if kind not in ("ran", "value", "raised") or not isinstance(text, str):
            break
        found.append(Outcome(kind, text))
    return found
