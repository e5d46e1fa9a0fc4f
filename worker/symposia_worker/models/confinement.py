"""``python -m symposia_worker.models.confinement BOUNDS MODULE ARGUMENT...``: run a module of ours that reads a stranger's files.

From its first line on the kernel lets it open no socket and trace no process, write nowhere but in the folders BOUNDS names,
and read nothing but Python, its libraries, the system's and BOUNDS' folders: no home, no credentials. What torch's loader for
weights alone should still let through of a pickle comes no further than that. Where the kernel has no Landlock or no
filter for this processor it says so, and the module runs in a process of its own without secrets, and no more.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from collections.abc import Callable, Sequence

from symposia_shared.sandbox import confined
from symposia_worker.imports import become

#: x86-64: socket, connect, accept, bind, listen, socketpair, ptrace, process_vm_readv, process_vm_writev, io_uring (which makes calls of its own), accept4
_REFUSED = (41, 42, 43, 49, 50, 53, 101, 310, 311, 425, 426, 427, 288)
_NO_NEW_PRIVS = 38
_SYSTEM = ("/usr", "/lib", "/lib64", "/etc", "/proc", "/sys")


def confine(readable: Sequence[str], writable: Sequence[str]) -> None:
    """Give up all but this, for ever. Says on standard error what the kernel lacks."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    means: tuple[Callable[[], object], ...] = (
        lambda: libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0),
        lambda: confined.confine_files(libc, [*readable], [*writable]),
        lambda: confined.refuse_calls(libc, _REFUSED),
    )
    for give_up in means:
        try:
            give_up()
        except (confined.Lacking, OSError) as error:
            print(f"not confined: {error}", file=sys.stderr)


def python() -> list[str]:
    """The folders Python and its packages are read from."""
    paths = [sys.prefix, sys.base_prefix, sys.exec_prefix, os.path.dirname(os.path.realpath(sys.executable)), *_SYSTEM, *(p or os.getcwd() for p in sys.path)]
    return [path for path in dict.fromkeys(map(os.path.realpath, paths)) if os.path.exists(path)]


def main(argv: Sequence[str]) -> None:
    """Confine, then become the module."""
    bounds, module, *arguments = argv
    named = json.loads(bounds)
    confine([*python(), *named["read"]], [*named["write"], "/dev"])
    become(module, arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
