"""``python -m symposia_worker.stack.pulse NAME``: whether the worker NAME is ready and alive, for a container's health check."""

from __future__ import annotations

import sys

from symposia_shared.errors import SymposiaError
from symposia_shared.ledger import Ledger
from symposia_shared.settings import load

#: seconds after which a heartbeat is too old
STALE_S = 10.0


def main(argv: list[str]) -> int:
    """0 where the last heartbeat is fresh and says ready, 1 where not, 2 for a wrong call."""
    if len(argv) != 1:
        print("usage: pulse NAME", file=sys.stderr)
        return 2
    try:
        settings = load()
        ledger = Ledger(settings.broker, settings.prefix, timeout_s=3.0)
        beat, now = ledger.workers().get(argv[0], {}), ledger.now_s()
    except SymposiaError as error:
        print(f"{error.name}: {error}", file=sys.stderr)
        return 1
    alive = bool(beat.get("ready_at")) and now - float(beat.get("beat_at", 0.0)) < STALE_S
    print(f"{argv[0]} is {'ready' if alive else 'not ready'}")
    return 0 if alive else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
