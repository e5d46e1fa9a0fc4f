"""Ending what a stack runs: from within, in order; and from outside, also what a killed supervisor left behind."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable, Mapping

import psutil

from symposia_shared.errors import StackUnavailable
from symposia_worker.stack import state
from symposia_worker.stack.folder import Folder
from symposia_worker.stack.part import Child, began

#: who ends before whom: no worker loses its ledger, and the store is there for the last commit
ORDER: tuple[tuple[state.Role, ...], ...] = (("api", "coordinator", "pool", "engine"), ("flower",), ("store",), ("broker",))
#: seconds a left-over process is given to end; a worker's broker got its SIGTERM at the same moment, so that there is little to wait for
LEFTOVER_GRACE_S: dict[state.Role, float] = {"coordinator": 4.0, "pool": 4.0, "engine": 4.0, "api": 4.0, "flower": 4.0, "store": 20.0, "broker": 20.0}
#: seconds `down` waits for a supervisor: its parts' graces, one after the other, and some
DOWN_S = 60.0
POLL_S = 0.05


def stop_children(children: Iterable[Child], hurried: Callable[[], bool], turned: Callable[[], None]) -> None:
    """End a stack's own children in order: SIGTERM, each its grace, then SIGKILL; at once when ``hurried``.

    ``turned`` is called whenever one has ended.
    """
    everyone = list(children)
    for roles in ORDER:
        group = [child for child in everyone if child.part.role in roles]
        for child in group:
            child.signal(signal.SIGTERM)
        begun = time.monotonic()
        while group:
            left = [child for child in group if not child.gone()]
            if len(left) < len(group):
                turned()
            for child in left:
                if hurried() or time.monotonic() - begun > child.part.grace_s:
                    child.signal(signal.SIGKILL)
            group = left
            time.sleep(POLL_S if group else 0)


def ours(process: state.Process) -> bool:
    """Whether the process still runs: its pid may have gone to another since, its beginning cannot."""
    if process.pid is None or process.began is None:
        return False
    begun = began(process.pid)
    return begun is not None and abs(begun - process.began) < 0.05 and not _zombie(process.pid)


def end_leftovers(processes: Iterable[state.Process], grace_s: Mapping[state.Role, float] = LEFTOVER_GRACE_S) -> int:
    """End what still runs of ``processes``, in order, waiting until all are gone. How many there were."""
    processes = list(processes)
    ended = 0
    for roles in ORDER:
        left = [p for p in processes if p.role in roles and ours(p)]
        ended += len(left)
        _signal(left, signal.SIGTERM)
        begun = time.monotonic()
        while left := [p for p in left if ours(p)]:
            _signal([p for p in left if time.monotonic() - begun > grace_s.get(p.role, 0.0)], signal.SIGKILL)
            time.sleep(POLL_S)
    return ended


def down(folder: Folder, timeout_s: float = DOWN_S) -> tuple[bool, int]:
    """Stop the folder's stack and whatever an earlier one left. (whether a supervisor ran, how many left-overs were ended).

    Raises StackUnavailable when a supervisor holds the folder but cannot be told, or does not end even when killed.
    """
    ran = folder.held()
    known = state.read(folder)
    if ran:
        _end_supervisor(folder, known, timeout_s)
        known = state.read(folder)
    ended = end_leftovers(known.processes) if known else 0
    if known:
        folder.state.unlink(missing_ok=True)
    return ran, ended


def _end_supervisor(folder: Folder, known: state.StackState | None, timeout_s: float) -> None:
    pid = folder.holder()
    if pid is None:
        raise StackUnavailable(f"A supervisor holds {folder.lock}, but the file does not say which; see `fuser {folder.lock}` and stop it.")
    begun = began(pid)
    # the lock is held and names this pid: it is the holder's, unless state and lock were written by two
    if begun is None or (known is not None and known.pid == pid and abs(known.began - begun) > 0.05):
        raise StackUnavailable(f"{folder.lock} names pid {pid}, which is not the supervisor that holds it; see `fuser {folder.lock}`.")
    os.kill(pid, signal.SIGTERM)
    if not _released(folder, timeout_s) and began(pid) == begun:
        os.kill(pid, signal.SIGKILL)
        if not _released(folder, 10.0):
            raise StackUnavailable(f"The supervisor (pid {pid}) does not end, even when killed. It may wait for a disk; try again later.")


def _zombie(pid: int) -> bool:
    """Whether it has ended, and its parent (in a container, often one that never looks) has not asked for its status."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.Error:
        return True


def _released(folder: Folder, timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while folder.held():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True


def _signal(processes: Iterable[state.Process], number: signal.Signals) -> None:
    for process in processes:
        try:
            if process.pid:
                os.kill(process.pid, number)
        except ProcessLookupError:
            pass
