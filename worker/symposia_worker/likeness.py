"""The process beside a pool that compares texts: started when it is first asked, gone once it has been idle, so that torch is in no pool."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Any

from symposia_shared.errors import SymposiaError, Unavailable

log = logging.getLogger(__name__)

#: seconds an answer may take; the first one includes importing torch and reading 90 MB of weights
PATIENCE_S = 120.0


class NotInstalled(SymposiaError):
    """This machine has no model that compares texts."""


class LikenessProcess:
    """One process, asked one thing at a time: a line of JSON in, a line of JSON out."""

    def __init__(self, *, program: Sequence[str] = (sys.executable, "-m", "symposia_worker.families.embedding"), patience_s: float = PATIENCE_S) -> None:
        self._program, self._patience_s = list(program), patience_s
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._stopped = threading.Event()

    def alike(self, texts: Sequence[str]) -> dict[str, Any]:
        """``{"scorer", "threshold", "alike"}`` of the texts. Raises NotInstalled, or Unavailable where the process dies or is too slow."""
        with self._lock:
            told = self._ask({"texts": list(texts)})
        if "refused" in told:
            raise NotInstalled(str(told["refused"]))
        return told

    def stop(self) -> None:
        """End the process, if there is one, for good; a question it is at fails."""
        self._stopped.set()
        if (process := self._process) is not None:
            process.kill()
        with self._lock:
            self._end()

    def _ask(self, task: dict[str, Any]) -> dict[str, Any]:
        for fresh in (self._process is None, True):
            try:
                return self._exchange(json.dumps(task).encode() + b"\n")
            except (OSError, ValueError) as error:
                self._end()
                if fresh or self._stopped.is_set():  # one that had been idle may have left while it was asked; a new one that fails will fail again
                    raise Unavailable(f"the process that compares texts gave no answer within {self._patience_s:g} s or died "
                                      f"({type(error).__name__}); see the pool's log.") from None
        raise AssertionError

    def _exchange(self, line: bytes) -> dict[str, Any]:
        process = self._process or self._start()
        assert process.stdin is not None  # noqa: S101 - a pipe
        assert process.stdout is not None  # noqa: S101 - a pipe
        alarm = threading.Timer(self._patience_s, process.kill)  # which ends a blocked write as well as a blocked read
        alarm.start()
        try:
            process.stdin.write(line)
            process.stdin.flush()
            told = json.loads(process.stdout.readline())
        finally:
            alarm.cancel()
        if not isinstance(told, dict):
            raise ValueError("no object")
        return told

    def _start(self) -> subprocess.Popen[bytes]:
        self._process = subprocess.Popen(self._program, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        log.info("started the process that compares texts, pid %d", self._process.pid)
        return self._process

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    try:
                        pipe.close()
                    except OSError:
                        pass  # what was not yet flushed to a dead process
