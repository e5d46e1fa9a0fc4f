"""A stack whose workers are stand-ins: they beat in Redis like real ones, each pool with an engine process, and hold no model.

``python stack_standin.py up DIR [--devices D] [--flower] [--dying]`` runs a real supervisor over real services;
``python stack_standin.py worker NAME ROLE DEVICE`` is what it starts.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

from symposia_shared.errors import BrokerUnavailable, SymposiaError
from symposia_shared.ledger import Ledger
from symposia_shared.settings import load


class StandIns:
    """Argument vectors of stand-in workers; ``dying`` pools end at once, with a reason."""

    def __init__(self, *, dying: bool = False) -> None:
        self.dying = dying

    def coordinator(self, name: str) -> tuple[str, ...]:
        return (sys.executable, __file__, "worker", name, "coordinator", "")

    def pool(self, order) -> tuple[str, ...]:  # type: ignore[no-untyped-def]
        role = "dying" if self.dying else "pool"
        return (sys.executable, __file__, "worker", order.name, role, order.share.device)


def work(name: str, role: str, device: str) -> None:
    """Beat until SIGTERM. A pool has an engine process that, like a real one, ends when the pool is gone."""
    if role == "dying":
        raise SystemExit(f"no such device: {device}")
    settings = load()
    ledger = Ledger(settings.broker, settings.prefix, timeout_s=1.0)
    over = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: over.set())
    engine = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE) if role == "pool" else None
    ready_at = time.time()
    while not over.wait(0.2):
        facts = {"role": role, "pid": os.getpid(), "device": device or None, "engine_pid": engine.pid if engine else None,
                 "host": socket.gethostname(), "ready_at": ready_at, "beat_at": time.time(), "models": []}
        try:
            ledger.beat(name, facts)
        except BrokerUnavailable:
            continue
    if engine and engine.stdin:
        engine.stdin.close()
        engine.wait()
    ledger.gone(name)


def up(folder: Path, *, devices: str, flower: bool, dying: bool) -> None:
    """A supervisor in the foreground."""
    from symposia_worker.stack.blueprint import Plan
    from symposia_worker.stack.devices import shares
    from symposia_worker.stack.display import Display
    from symposia_worker.stack.folder import Folder
    from symposia_worker.stack.supervisor import Supervisor

    place = Folder(folder)
    plan = Plan(devices=shares(devices), test_models=True, flower=flower, start_timeout_s=30.0)
    with Display(place) as display:
        Supervisor(place, plan, display, commands=StandIns(dying=dying)).run()


def main() -> None:
    parser = argparse.ArgumentParser()
    verbs = parser.add_subparsers(dest="verb", required=True)
    one = verbs.add_parser("up")
    one.add_argument("folder", type=Path)
    one.add_argument("--devices", default="cpu")
    one.add_argument("--flower", action="store_true")
    one.add_argument("--dying", action="store_true")
    other = verbs.add_parser("worker")
    for argument in ("name", "role", "device"):
        other.add_argument(argument)
    given = parser.parse_args()
    if given.verb == "worker":
        work(given.name, given.role, given.device)
        return
    try:
        up(given.folder, devices=given.devices, flower=given.flower, dying=given.dying)
    except SymposiaError as error:
        print(f"{error.name}: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
