"""Runs one untrusted program, after giving up everything it could do harm with. Started as a script of its own, isolated (-I -S).

The order is the kernel's own: resource limits, no new privileges, no capabilities, Landlock (which files may be opened), seccomp
(which system calls may be made). If any of these cannot be had it says so and ends with LACKING, before a line of the
program has run. What is left: computing, reading the standard library, writing to the pipes it was born with, and ending.
No process or thread is started, no file is written or made, no signal is sent, no socket is opened.

Source: Documentation/userspace-api/landlock.rst and seccomp_filter.rst of Linux. Standard library only: it imports
nothing of ours, because after this it may not.
"""

import contextlib
import ctypes
import json
import os
import resource
import signal
import struct
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

#: exit code that says that a means of confinement is lacking
LACKING = 97

_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _PR_CAPBSET_DROP = 1, 38, 22, 24
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
#: rights over files that each Landlock version knows: 13 bits, then refer, truncate, (net), ioctl on devices
_FILE_RIGHTS = {1: 0x1FFF, 2: 0x3FFF, 3: 0x7FFF, 4: 0x7FFF, 5: 0xFFFF}
_EXECUTE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 2, 1 << 3
#: of the rights those a rule for a single file may give: execute, write, read, truncate
_OF_FILES = 1 << 0 | 1 << 1 | 1 << 2 | 1 << 14

_X86_64, _AARCH64 = 0xC000003E, 0xC00000B7
_ALLOW, _KILL, _REFUSE = 0x7FFF0000, 0x80000000, 0x00050000 | 1  # the last: fails with EPERM

#: x86-64 system calls that are harmless whatever their arguments
_HARMLESS = {
    "read": 0, "write": 1, "close": 3, "fstat": 5, "stat": 4, "lstat": 6, "poll": 7, "lseek": 8, "mmap": 9, "mprotect": 10, "munmap": 11,
    "brk": 12, "rt_sigaction": 13, "rt_sigprocmask": 14, "rt_sigreturn": 15, "pread64": 17, "readv": 19, "writev": 20, "access": 21,
    "select": 23, "sched_yield": 24, "mremap": 25, "madvise": 28, "dup": 32, "nanosleep": 35, "alarm": 37, "setitimer": 38, "getpid": 39,
    "exit": 60, "uname": 63, "getcwd": 79, "gettimeofday": 96, "getrusage": 98, "times": 100, "getuid": 102, "getgid": 104,
    "geteuid": 107, "getegid": 108, "sigaltstack": 131, "gettid": 186, "futex": 202, "sched_getaffinity": 204, "time": 201,
    "getdents64": 217, "clock_gettime": 228, "clock_getres": 229, "clock_nanosleep": 230, "exit_group": 231, "newfstatat": 262,
    "faccessat": 269, "pselect6": 270, "ppoll": 271, "getrandom": 318, "statx": 332, "faccessat2": 439,
}
_OPENAT, _FCNTL, _PRLIMIT = 257, 72, 302
#: flags of open that would write or make something: WRONLY, RDWR, CREAT, TRUNC, TMPFILE's own bit
_WRITING = 0o1 | 0o2 | 0o100 | 0o1000 | 0o20000000
#: F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_DUPFD_CLOEXEC; F_SETOWN would send signals to others
_FCNTL_ALLOWED = (0, 1, 2, 3, 1030)


class Lacking(Exception):
    """The kernel does not offer this."""


def lacking(what: str) -> NoReturn:
    """End, saying what the kernel does not offer."""
    os.write(2, what.encode())
    os._exit(LACKING)


def limit(cpu_s: int, memory_bytes: int) -> None:
    """Hard limits on processor seconds, address space, files and core dumps."""
    for which, most in ((resource.RLIMIT_CPU, cpu_s), (resource.RLIMIT_AS, memory_bytes), (resource.RLIMIT_FSIZE, 0),
                        (resource.RLIMIT_CORE, 0), (resource.RLIMIT_NOFILE, 32), (resource.RLIMIT_NPROC, 0)):
        resource.setrlimit(which, (most, most))


def drop_privileges(libc: Any) -> None:
    """No new privileges for ever; no capabilities, also for root; the parent's end is ours."""
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) or libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise Lacking("prctl cannot forbid new privileges")
    for capability in range(64):
        libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
    header, nothing = struct.pack("Ii", 0x20080522, 0), bytes(24)
    if libc.capset(header, nothing):
        raise Lacking("capset cannot drop the capabilities")


def confine_files(libc: Any, readable: list[str], writable: Sequence[str] = ()) -> None:
    """Landlock: of all files only those under ``readable`` may be opened, and only to read; under ``writable`` all may be done but running them."""
    version = libc.syscall(_LANDLOCK_CREATE, None, ctypes.c_size_t(0), ctypes.c_uint32(1))
    if version < 1:
        raise Lacking("the kernel has no Landlock")
    rights = _FILE_RIGHTS.get(version, _FILE_RIGHTS[5])
    ruleset = libc.syscall(_LANDLOCK_CREATE, struct.pack("Q", rights), ctypes.c_size_t(8), ctypes.c_uint32(0))
    if ruleset < 0:
        raise Lacking("Landlock makes no ruleset")
    for path in [*readable, *writable]:
        folder = os.open(path, os.O_PATH | os.O_CLOEXEC)
        wanted = rights & ~_EXECUTE if path in writable else _READ_FILE | _READ_DIR
        rule = struct.pack("=Qi", wanted if os.path.isdir(path) else wanted & _OF_FILES, folder)
        if libc.syscall(_LANDLOCK_ADD, ruleset, 1, rule, 0):
            raise Lacking(f"Landlock takes no rule for {path}")
        os.close(folder)
    if libc.syscall(_LANDLOCK_RESTRICT, ruleset, 0):
        raise Lacking("Landlock does not restrict")
    os.close(ruleset)


def _instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("HBBI", code, if_true, if_false, value & 0xFFFFFFFF)


_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCHITECTURE = 0, 4


def _argument(i: int, *, high: bool = False) -> bytes:
    """Load one half of system call argument ``i`` (little endian)."""
    return _instruction(_LOAD, 16 + 8 * i + (4 if high else 0))


def system_call_filter() -> Iterator[bytes]:
    """The seccomp program: what is not listed fails with EPERM; another architecture's calls kill."""
    yield _instruction(_LOAD, _ARCHITECTURE)
    yield _instruction(_EQUAL, _X86_64, 1, 0)
    yield _instruction(_RETURN, _KILL)
    yield _instruction(_LOAD, _NUMBER)
    yield _instruction(_AT_LEAST, 0x40000000, 0, 1)  # the x32 calls
    yield _instruction(_RETURN, _KILL)
    for number in sorted(_HARMLESS.values()):
        yield _instruction(_EQUAL, number, 0, 1)
        yield _instruction(_RETURN, _ALLOW)
    yield from (_instruction(_EQUAL, _OPENAT, 0, 4), _argument(2), _instruction(_ANY_BIT, _WRITING, 0, 1),
                _instruction(_RETURN, _REFUSE), _instruction(_RETURN, _ALLOW))
    fcntl = [_argument(1)]
    for command in _FCNTL_ALLOWED:
        fcntl += [_instruction(_EQUAL, command, 0, 1), _instruction(_RETURN, _ALLOW)]
    yield _instruction(_EQUAL, _FCNTL, 0, len(fcntl) + 1)
    yield from (*fcntl, _instruction(_RETURN, _REFUSE))
    # reading one's own limits, neither setting them nor touching another process's
    yield _instruction(_EQUAL, _PRLIMIT, 0, 8)
    yield from (_argument(0), _instruction(_EQUAL, 0, 0, 5), _argument(2), _instruction(_EQUAL, 0, 0, 3), _argument(2, high=True),
                _instruction(_EQUAL, 0, 0, 1), _instruction(_RETURN, _ALLOW), _instruction(_RETURN, _REFUSE))
    yield _instruction(_RETURN, _REFUSE)


def confine_calls(libc: Any) -> None:
    """seccomp: only the system calls of the filter."""
    if os.uname().machine != "x86_64" or sys.byteorder != "little" or struct.calcsize("P") != 8:
        raise Lacking(f"there is no filter of system calls for {os.uname().machine}")
    _filter(libc, b"".join(system_call_filter()))


def refuse_calls(libc: Any, numbers: Sequence[int]) -> None:
    """seccomp: the x86-64 system calls ``numbers`` fail with EPERM, all others may be made."""
    if os.uname().machine != "x86_64" or sys.byteorder != "little" or struct.calcsize("P") != 8:
        raise Lacking(f"there is no filter of system calls for {os.uname().machine}")
    steps = [_instruction(_LOAD, _ARCHITECTURE), _instruction(_EQUAL, _X86_64, 1, 0), _instruction(_RETURN, _KILL), _instruction(_LOAD, _NUMBER),
             _instruction(_AT_LEAST, 0x40000000, 0, 1), _instruction(_RETURN, _KILL)]
    for number in numbers:
        steps += [_instruction(_EQUAL, number, 0, 1), _instruction(_RETURN, _REFUSE)]
    _filter(libc, b"".join([*steps, _instruction(_RETURN, _ALLOW)]))


def _filter(libc: Any, program: bytes) -> None:
    held = ctypes.create_string_buffer(program, len(program))
    filter_ = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(held))
    if libc.prctl(_PR_SET_SECCOMP, 2, filter_, 0, 0):
        raise Lacking("the kernel has no seccomp filters")


class OutOfTime(BaseException):
    """A call took longer than its share; no Exception, so that an ordinary ``except`` does not swallow it."""


def _out_of_time(*_: object) -> NoReturn:
    raise OutOfTime


def written(value: object, depth: int = 0) -> str:
    """``repr`` that is the same in every process: sets sorted, floats to ten digits; by type name where it has no own repr."""
    if depth > 20:
        return "..."
    if isinstance(value, bool | int | str | bytes | type(None)):
        return repr(value)
    if isinstance(value, float):
        return f"{value:.10g}" if value % 1 else repr(value)
    if isinstance(value, list | tuple | set | frozenset):
        items = [written(v, depth + 1) for v in value]
        return f"{type(value).__name__}({', '.join(sorted(items) if isinstance(value, set | frozenset) else items)})"
    if isinstance(value, dict):
        return "dict(" + ", ".join(sorted(f"{written(k, depth + 1)}: {written(v, depth + 1)}" for k, v in value.items())) + ")"
    if type(value).__repr__ is object.__repr__:
        return f"<{type(value).__name__}>"
    return repr(value)


def run(program: str, calls: list[str], call_s: float, results: int) -> None:
    """Run ``program``, then each of ``calls`` in its names; one JSON line per outcome is written to ``results`` at once."""
    def tell(outcome: str, text: str = "") -> None:
        os.write(results, (json.dumps([outcome, text[:10_000]]) + "\n").encode())

    names: dict[str, Any] = {"__name__": "__program__"}
    signal.signal(signal.SIGALRM, _out_of_time)
    for i, source in enumerate((program, *calls)):
        try:
            if i == 0:
                exec(compile(source, "<program>", "exec"), names)  # noqa: S102 - this is what the confinement is for
                tell("ran")
            else:
                signal.setitimer(signal.ITIMER_REAL, call_s)
                value = written(eval(compile(source, "<call>", "eval"), names))  # noqa: S307
                signal.setitimer(signal.ITIMER_REAL, 0)
                tell("value", value)
        except BaseException as error:
            signal.setitimer(signal.ITIMER_REAL, 0)
            tell("raised", type(error).__name__)
            if i == 0:
                return


def main() -> None:
    """Read what is to be run from standard input, give up all rights, run it."""
    task = json.load(sys.stdin)
    libc = ctypes.CDLL(None, use_errno=True)
    results = os.dup(1)
    os.dup2(2, 1)  # what the program prints is not a result
    readable = sorted({os.path.realpath(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib")})
    limit(task["cpu_s"], task["memory_bytes"])
    try:
        drop_privileges(libc)
        confine_files(libc, readable)
        confine_calls(libc)
    except Lacking as error:
        lacking(str(error))
    run(task["program"], task["calls"], task["call_s"], results)
    with contextlib.suppress(BaseException):
        sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
