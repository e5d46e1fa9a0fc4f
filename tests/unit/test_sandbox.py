"""What confined programs can do, and the ways out they have tried."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from symposia_shared import behaviour, sandbox
from symposia_shared.sandbox import Limits, Outcome, confined, run

pytestmark = pytest.mark.skipif(sandbox.lacking() is not None, reason=f"untrusted code is not run here: {sandbox.lacking()}")

CTYPES = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
def call(*arguments):
    return libc.syscall(*arguments), ctypes.get_errno()
"""
EPERM = "tuple(-1, 1)"


def outcome(program: str, call: str, limits: Limits | None = None) -> Outcome:
    """What ``call`` came to in the names of ``program``."""
    ran = run(program, [call], limits=limits)
    assert ran.how == "ended", ran
    return ran.outcomes[-1]


def refused(program: str, call: str) -> bool:
    """Whether the kernel, or what stands on it, refused the call."""
    found = outcome(program, call)
    return found.kind == "raised" and found.text in ("PermissionError", "OSError", "BlockingIOError", "RuntimeError", "error", "gaierror")


def test_a_program_is_run_and_its_calls_are_evaluated_in_order() -> None:
    ran = run("import math\ndef f(x):\n    return {math.floor(x), 'b', 'a'}", ["f(2.5)", "f('x')", "1 / 3"])
    assert ran.how == "ended"
    assert [(o.kind, o.text) for o in ran.outcomes] == [
        ("ran", ""), ("value", "set('a', 'b', 2)"), ("raised", "TypeError"), ("value", "0.3333333333")]


def test_a_program_that_does_not_compile_says_so_and_is_asked_nothing() -> None:
    assert run("def f(:", ["f()"]).outcomes == (Outcome("raised", "SyntaxError"),)


def test_a_call_without_end_runs_out_of_time_and_the_next_is_asked() -> None:
    ran = run("def f(n):\n    while n: pass\n    return 7", ["f(1)", "f(0)"], limits=Limits(call_s=0.2))
    assert [o.text for o in ran.outcomes] == ["", "OutOfTime", "7"]


@pytest.mark.parametrize("module", [
    "re", "json", "collections", "itertools", "random", "datetime", "decimal", "hashlib", "statistics", "typing",
])
def test_the_standard_library_can_be_imported(module: str) -> None:
    assert outcome(f"import {module}", "1").text == "1"


@pytest.mark.parametrize("path", [
    "/etc/passwd", "/etc/hostname", "/proc/self/environ", "/proc/1/environ", "/proc/self/mem", "/dev/null", "/proc/1/cmdline", "/proc/self/status",
    __file__,
])
def test_no_file_outside_the_standard_library_is_opened(path: str) -> None:
    assert refused("", f"open({path!r}).read(1)")
    assert refused("", f"open({path!r}, 'rb', opener=lambda p, f: __import__('os').open(p, 0)).read(1)")


@pytest.mark.parametrize("call", [
    "open('here', 'w')", "open('/tmp/there', 'a')", "open(os.__file__, 'r+')", "os.open(os.__file__, os.O_RDONLY | os.O_TRUNC)",
    "os.mkdir('/tmp/folder')", "os.unlink('/tmp/x')", "os.rename('/tmp/x', '/tmp/y')", "os.symlink('/etc/passwd', '/tmp/link')",
    "os.link('/etc/passwd', '/tmp/link')", "os.chmod('/tmp', 0)", "os.chown('/tmp', 1, 1)", "os.truncate('/etc/passwd', 0)",
    "os.utime('/tmp')", "os.mkfifo('/tmp/fifo')", "os.readlink('/proc/self/cwd')", "os.chdir('/tmp')", "os.chroot('/')",
    "os.setxattr('/tmp', 'user.x', b'')", "os.listdir('/')", "os.listdir('/proc')", "os.listdir('/tmp')", "os.scandir('/home')",
    "os.memfd_create('x')",
])
def test_nothing_is_written_made_changed_or_listed(call: str) -> None:
    assert refused("import os", call)


@pytest.mark.parametrize("call", [
    "os.fork()", "os.posix_spawn('/bin/true', ['true'], {})", "os.execv('/bin/true', ['true'])", "subprocess.run(['true'])",
    "os.system('true') and 1 / 0", "threading.Thread(target=print).start()", "os.kill(os.getppid(), 9)", "os.kill(os.getpid(), 9)",
    "os.kill(-1, 9)", "os.killpg(0, 9)", "signal.pidfd_send_signal(0, 9)", "signal.raise_signal(9)", "socket.socket()", "socket.socketpair()",
    "socket.socket(socket.AF_UNIX)", "socket.create_connection(('127.0.0.1', 1))", "fcntl.fcntl(1, fcntl.F_SETOWN, os.getppid())",
    "os.setpriority(os.PRIO_PROCESS, os.getppid(), 19)", "resource.prlimit(os.getppid(), resource.RLIMIT_CPU, (1, 1))",
    "resource.setrlimit(resource.RLIMIT_CPU, (9, 9))", "os.setuid(1)", "os.sched_setaffinity(os.getppid(), {0})", "os.nice(1)",
    "os.pidfd_open(os.getppid())",
])
def test_no_process_signal_or_socket_is_had(call: str) -> None:
    found = outcome("import fcntl, os, resource, signal, socket, subprocess, threading", call)
    refusals = ("PermissionError", "OSError", "RuntimeError", "error", "ZeroDivisionError", "ValueError")
    assert found.kind == "raised"
    assert found.text in refusals


def test_the_environment_is_empty_and_holds_nothing_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "hush")
    assert "hush" not in outcome("import os", "str(dict(os.environ))").text


@pytest.mark.parametrize(("name", "arguments"), [
    ("ptrace attach", (101, 16, "os.getppid()", 0, 0)), ("process_vm_readv", (310, "os.getppid()", 0, 0, 0, 0, 0)),
    ("kill", (62, "os.getppid()", 9)), ("tgkill", (234, "os.getppid()", "os.getppid()", 9)), ("socket", (41, 2, 1, 0)), ("fork", (57,)),
    ("clone", (56, 17, 0, 0, 0, 0)), ("open", (2, "b'/etc/passwd'", 0)), ("creat", (85, "b'/tmp/x'", 0o600)),
    ("openat2", (437, -100, "b'/etc/passwd'", 0, 0)), ("unshare", (272, 0x10000000)), ("mount", (165, 0, 0, 0, 0, 0)),
    ("bpf", (321, 0, 0, 0)), ("io_uring_setup", (425, 1, 0)), ("keyctl", (250, 0, 0)), ("perf_event_open", (298, 0, 0, 0, 0, 0)),
    ("userfaultfd", (323, 0)), ("prctl", (157, 38, 0, 0, 0, 0)), ("seccomp", (317, 0, 0, 0)), ("landlock", (446, 3, 0)),
    ("setns", (308, 0, 0)), ("reboot", (169, 0, 0, 0, 0)), ("execve", (59, 0, 0, 0)), ("memfd_create", (319, "b'x'", 0)),
    ("pidfd_getfd", (438, 0, 0, 0)), ("syslog", (103, 10, 0, 0)),
])
def test_a_system_call_made_by_hand_is_refused_too(name: str, arguments: tuple[object, ...]) -> None:
    assert outcome(CTYPES + "import os", f"call({', '.join(map(str, arguments))})") == Outcome("value", EPERM), name


def test_the_calls_of_another_architecture_end_the_program() -> None:
    getpid_of_x32 = 0x40000000 + 39
    ran = run(CTYPES, [f"call({getpid_of_x32})"])
    assert ran.how == "killed"
    assert [o.kind for o in ran.outcomes] == ["ran"]


def test_memory_is_limited() -> None:
    assert outcome("", "len(bytearray(2**32))", Limits(memory_bytes=256 * 2**20)) == Outcome("raised", "MemoryError")


def test_processor_time_is_limited_whatever_is_caught_or_ignored() -> None:
    stubborn = """
import signal
for s in (1, 2, 3, 14, 15, 24):
    signal.signal(s, signal.SIG_IGN)
while True:
    try:
        while True: pass
    except BaseException: pass
"""
    assert run(stubborn, limits=Limits(cpu_s=1, wall_s=60.0)).how == "time"


def test_a_program_that_sleeps_is_ended_at_its_wall_time() -> None:
    began = time.monotonic()
    assert run("import time\ntime.sleep(3600)", limits=Limits(wall_s=0.5)).how == "time"
    assert time.monotonic() - began < 60


def test_a_flood_of_output_ends_the_program_and_little_is_kept() -> None:
    ran = run("while True:\n    print('x' * 10_000)", limits=Limits(output_bytes=100_000))
    assert ran.how == "output"
    assert len(ran.printed) <= 10_000


def test_a_program_that_closes_its_pipes_and_goes_on_is_ended() -> None:
    closes = "import os\nfor fd in range(10):\n    try: os.close(fd)\n    except OSError: pass\nwhile True: pass"
    assert run(closes, limits=Limits(cpu_s=1)).how == "time"


def test_results_that_a_program_forges_are_its_own_word_and_break_nothing() -> None:
    ran = run("import os\nfor fd in range(3, 10):\n    try: os.write(fd, b'{not json\\n[1, 2, 3]\\n')\n    except OSError: pass", ["1"])
    assert ran.how == "ended"
    assert all(isinstance(o, Outcome) for o in ran.outcomes)


def test_a_program_that_crashes_the_interpreter_harms_nobody() -> None:
    assert run("import ctypes\nctypes.string_at(0)").how == "killed"


def test_no_process_is_left_behind() -> None:
    before = {p.name for p in Path("/proc").iterdir() if p.name.isdigit()}
    for program in ("while True: pass", "import time\ntime.sleep(99)", "x = 1"):
        run(program, limits=Limits(cpu_s=1, wall_s=0.3))
    mine = [p for p in Path("/proc").iterdir() if p.name.isdigit() and p.name not in before and _parent(p) == os.getpid()]
    assert mine == []


def _parent(process: Path) -> int | None:
    try:
        return int((process / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None


def test_where_a_means_is_lacking_nothing_is_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # Given a machine without Landlock
    script = tmp_path / "confined.py"
    script.write_text(Path(confined.__file__).read_text().replace("if version < 1:", "if True:"))
    monkeypatch.setattr(sandbox, "_SCRIPT", script)
    # When a program is to be run
    ran = run("print('ran')", ["1"])
    # Then it is not, and what is lacking is said
    assert (ran.how, ran.outcomes) == ("lacking", ())
    assert "Landlock" in ran.printed


def _as_nobody(script: Path, task: object) -> subprocess.CompletedProcess[str] | None:
    """What the confined script says to ``task`` as an ordinary user, with the first Python such a user may run; None without one."""
    for python in (sys.executable, "/usr/bin/python3"):
        with contextlib.suppress(OSError):
            return subprocess.run([python, "-I", "-S", "-B", str(script)], input=json.dumps(task), capture_output=True, text=True, timeout=60,
                                  user=65534, group=65534, extra_groups=[], env={}, cwd="/", check=False)
    return None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_it_confines_an_ordinary_user_as_it_does_root() -> None:
    # Given the sandbox alone, where anybody may read it, and an ordinary user
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        script = Path(folder) / "confined.py"
        script.write_text(Path(confined.__file__).read_text())
        calls = ["os.getuid()", "open('/etc/passwd')", "os.fork()", "os.kill(os.getppid(), 0)"]
        # When they run a program in it
        ran = _as_nobody(script, {"program": "import os", "calls": calls, "cpu_s": 5, "memory_bytes": 2**29, "call_s": 2})
    if ran is None:
        pytest.skip("another user may run no Python here")
    # Then it is confined
    refusal = ["raised", "PermissionError"]
    assert [json.loads(line) for line in ran.stdout.splitlines()] == [["ran", ""], ["value", "65534"], refusal, refusal, refusal], ran.stderr


def test_programs_that_do_the_same_behave_alike() -> None:
    by_hand = "def f(x):\n    out = []\n    for i in sorted(x):\n        if i not in out: out.append(i)\n    return out"
    programs = ["def f(x):\n    return sorted(set(x))", by_hand, "def f(x):\n    return x", None, "def f(:", "def f(x):\n    raise ValueError"]
    keys = behaviour.behaviours(programs, ["f([2, 1, 2])", "f([])"])
    assert keys[0] == keys[1] is not None
    assert keys[2] not in (keys[0], None)
    assert keys[3:] == [None, None, None]


def test_a_completion_is_run_behind_its_prompt() -> None:
    prompt = 'def double(x):\n    """Twice x."""\n'
    programs = ["    return 2 * x\n", "def double(x):\n    return x + x\n", "    return x\n"]
    keys = behaviour.behaviours(programs, ["double(3)"], prompt=prompt)
    assert keys[0] == keys[1] != keys[2]


def test_sets_are_seen_in_one_order_by_equal_programs() -> None:
    same = ["def f():\n    return list({'a', 'b', 'c', 'd', 'e'})", "def f():\n    return list({'a', 'b', 'c', 'd', 'e'}) + []"]
    assert len(set(behaviour.behaviours(same * 3, ["f()"]))) == 1
