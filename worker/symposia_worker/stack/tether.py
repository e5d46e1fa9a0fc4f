"""``python -m symposia_worker.stack.tether --parent PID [--lock FILE] CMD...``: run CMD so that it never outlives its supervisor.

The process asks Linux for a SIGTERM at its parent's death and becomes CMD; the request, the pid and the lock survive
``exec``. Elsewhere than on Linux there is no such request, and the next ``up`` or ``down`` ends what was left behind.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import sys
import time

PR_SET_PDEATHSIG = 1
#: seconds an earlier holder of the lock is given to end
LOCK_WAIT_S = 15.0


def main(argv: list[str]) -> int:
    """Tie, lock, become. Returns only when it cannot: 1 the parent is gone, 75 the lock is held, 127 no such command."""
    parent, lock, command = _parsed(argv)
    _tie()
    # The parent may have died before the request was in force: then nobody will signal us, and we end by ourselves.
    if os.getppid() != parent:
        return 1
    if lock and not _hold(lock):
        print(f"{lock} is held by another process that uses these files; stop it first.", file=sys.stderr)
        return 75
    try:
        os.execvp(command[0], command)  # noqa: S606  # no shell: an argument vector of our own making
    except OSError as error:
        print(f"{command[0]} cannot be run: {error}", file=sys.stderr)
    return 127


def _parsed(argv: list[str]) -> tuple[int, str, list[str]]:
    rest = list(argv)
    given = {"--parent": "", "--lock": ""}
    while len(rest) > 1 and rest[0] in given:
        flag = rest.pop(0)
        given[flag] = rest.pop(0)
    if not rest or not given["--parent"].isdigit():
        raise SystemExit("usage: tether --parent PID [--lock FILE] CMD...")
    return int(given["--parent"]), given["--lock"], rest


def _tie() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def _hold(path: str) -> bool:
    """Take the lock for the command: its open file is inherited over ``exec`` and released by the kernel when CMD ends."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    os.set_inheritable(fd, True)
    deadline = time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
