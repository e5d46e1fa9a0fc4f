"""What a trial of a stranger's checkpoint may do, whatever is in it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from symposia_shared import sandbox

PROGRAM = """
import json, os, socket, subprocess, sys, threading
from pathlib import Path
inside, outside = Path(sys.argv[1]), Path(sys.argv[2])
def outcome(work):
    try:
        work()
    except OSError as error:
        return type(error).__name__
    return "done"
def thread():
    one = threading.Thread(target=lambda: None)
    one.start()
    one.join()
print(json.dumps({
    "write inside": outcome(lambda: (inside / "w").write_text("x")), "read what is tried": outcome(lambda: (outside / "tried" / "r").read_text()),
    "write beside it": outcome(lambda: (outside / "tried" / "w").write_text("x")), "read elsewhere": outcome(lambda: (outside / "secret").read_text()),
    "list elsewhere": outcome(lambda: os.listdir(outside)), "connect": outcome(lambda: socket.socket()), "run": outcome(lambda: subprocess.run(["/bin/true"])),
    "a thread": outcome(thread), "import": outcome(lambda: __import__("sqlite3")),
}))
"""


@pytest.mark.skipif(sandbox.lacking() is not None, reason=f"this kernel cannot confine a program: {sandbox.lacking()}")
def test_a_trial_can_read_and_write_what_it_must_and_nothing_else(tmp_path: Path) -> None:
    for folder in ("inside", "outside/tried", "code"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "outside/secret").write_text("secret")
    (tmp_path / "outside/tried/r").write_text("r")
    (tmp_path / "code/hostile.py").write_text(PROGRAM)
    bounds = json.dumps({"read": [str(tmp_path / "outside/tried"), str(tmp_path / "code")], "write": [str(tmp_path / "inside")]})
    launch = f"import sys; sys.path.append({str(tmp_path / 'code')!r}); from symposia_worker.models.confinement import main; main(sys.argv[1:])"
    done = subprocess.run([sys.executable, "-c", launch, bounds, "hostile", str(tmp_path / "inside"), str(tmp_path / "outside")], capture_output=True,
                          text=True, check=True)
    assert done.stderr == ""
    assert json.loads(done.stdout) == {
        "write inside": "done", "read what is tried": "done", "a thread": "done", "import": "done",
        "write beside it": "PermissionError", "read elsewhere": "PermissionError", "list elsewhere": "PermissionError", "connect": "PermissionError",
        "run": "PermissionError",
    }
