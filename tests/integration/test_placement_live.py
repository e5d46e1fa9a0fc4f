"""The desired placement at run time: pools load and give up checkpoints without a restart, and after they were away."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from stack import Stack, clean_environ, running_stack, wait_for

from checkpoints import facts
from symposia import Inference
from symposia_shared.ledger.desired import Assigned, Desired
from symposia_shared.turns import Completion
from symposia_worker.joining import pool_name_here
from symposia_worker.models.store import ModelStore
from tiny import tiny_checkpoint

pytestmark = pytest.mark.timeout(600)

#: seconds a busy machine may take to import torch and load
PATIENCE_S = 150.0
POOLS = ("pool-cpu-0", "pool-cpu-1")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Two pools of one machine, and three stored checkpoints that neither serves."""
    folder = tmp_path_factory.mktemp("placement")
    with running_stack(folder / "stack", "--devices", "cpu:0=30MB,cpu:1=30MB", "--no-flower", "--no-api", "--engine", "torch") as stack:
        for seed, name in enumerate(("a", "b", "c")):
            tiny_checkpoint(folder / name, "llama", chat=True, seed=seed)
            ModelStore(stack.client.archive.store).push(folder / name, f"lab/{name}", facts=facts(
                model_type="llama", context=512, capabilities=("generate", "instruct")))
        yield stack


def planned(stack: Stack, *args: str) -> str:
    """`symposia plan` on this stack."""
    command = [sys.executable, "-m", "symposia_worker.commands.plan", *args, "--dir", str(stack.folder)]
    ran = subprocess.run(command, capture_output=True, text=True, env=clean_environ(), timeout=240, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def served(stack: Stack) -> dict[str, set[str]]:
    beats = stack.client.ledger.workers()
    return {pool: set(beats[pool]["models"]) for pool in POOLS if pool in beats}


def answered_by(stack: Stack, model: str) -> str:
    result = stack.client.submit(Inference(model=model, prompt="hello", sampling={"max_tokens": 4})).result(60)
    assert isinstance(result.completion, Completion)
    return result.completion.pool


def test_pools_come_to_what_is_desired_as_they_run_and_a_move_leaves_no_moment_unserved(lab: Stack) -> None:
    pids = [p["pid"] for p in lab.json("info")["processes"] if p["role"] == "pool"]
    # Given a plan by the command, put in force
    said = planned(lab, "--devices", "cpu:0=30MB,cpu:1=30MB", "--model", "lab/a=100", "--model", "lab/b=50", "--apply", "--wait", "150")
    assert "in force as version 1" in said
    assert all(f"{pool} is at this version" in said for pool in POOLS), said
    assert {m for models in served(lab).values() for m in models} == {"lab/a", "lab/b"}
    assert answered_by(lab, "lab/a") in POOLS
    # When all of it moves to the first pool, another follows, and one is in bfloat16
    desired = Desired(lab.client.ledger)
    desired.write({POOLS[0]: [Assigned(checkpoint="lab/a", precision="bfloat16"), Assigned(checkpoint="lab/c")], POOLS[1]: []})
    wait_for(lambda: served(lab) == {POOLS[0]: {"lab/a", "lab/c"}, POOLS[1]: set()}, PATIENCE_S)
    assert answered_by(lab, "lab/a") == answered_by(lab, "lab/c") == POOLS[0]
    assert lab.client.ledger.placed()["lab/a"]["precision"] == "bfloat16"
    # Then what is nowhere is refused at submit, and no pool was started again for any of it
    assert "lab/b" not in lab.client.ledger.placed()
    assert [p["pid"] for p in lab.json("info")["processes"] if p["role"] == "pool"] == pids


def test_a_pool_that_was_away_reads_the_placement_that_holds_when_it_comes_back(lab: Stack) -> None:
    pid = next(p["pid"] for p in lab.json("info")["processes"] if p["role"] == "pool" and p["device"] == "cpu:1")
    os.kill(pid, signal.SIGKILL)
    version = Desired(lab.client.ledger).write({POOLS[0]: [Assigned(checkpoint="lab/c")], POOLS[1]: [Assigned(checkpoint="lab/b")]})
    wait_for(lambda: served(lab) == {POOLS[0]: {"lab/c"}, POOLS[1]: {"lab/b"}}, PATIENCE_S)
    wait_for(lambda: all(lab.client.ledger.workers()[pool]["placement"] == version for pool in POOLS), PATIENCE_S)
    assert answered_by(lab, "lab/b") == POOLS[1]


def test_what_cannot_be_loaded_is_refused_with_the_numbers_and_holds_nothing_up(lab: Stack, tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path / "big", "llama", chat=True, seed=9, hidden_size=256, intermediate_size=2048, num_hidden_layers=6,
                    num_attention_heads=8, num_key_value_heads=4)
    ModelStore(lab.client.archive.store).push(tmp_path / "big", "lab/big", facts=facts(model_type="llama", context=512, capabilities=("generate",)))
    version = Desired(lab.client.ledger).write({POOLS[0]: [Assigned(checkpoint="lab/big"), Assigned(checkpoint="lab/a")], POOLS[1]: []})
    wait_for(lambda: lab.client.ledger.workers()[POOLS[0]]["placement"] == version, PATIENCE_S)
    assert served(lab)[POOLS[0]] == {"lab/a"}
    said = planned(lab, "--status")
    assert "refused: lab/big: lab/big as float32 needs" in said
    # And when the placement is taken back, both serve what they were started with: nothing
    planned(lab, "--release", "--wait", "150")
    wait_for(lambda: served(lab) == {POOLS[0]: set(), POOLS[1]: set()}, PATIENCE_S)


def test_a_pool_with_an_environment_of_its_own_joins_by_addresses_alone_and_serves_what_nobody_else_does(lab: Stack, tmp_path: Path) -> None:
    # Given a process that knows two addresses, and the secrets from its environment; nothing of the stack's folder
    settings = lab.client.settings
    s3 = settings.s3
    assert s3.secret_key is not None
    assert settings.message_key is not None
    parts = urlsplit(settings.broker)
    environ = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path), "SYMPOSIA_BROKER_PASSWORD": parts.password or "",
               "SYMPOSIA_S3__ACCESS_KEY": s3.access_key or "", "SYMPOSIA_S3__SECRET_KEY": s3.secret_key.get_secret_value(),
               "SYMPOSIA_MESSAGE_KEY": settings.message_key.get_secret_value()}
    command = [sys.executable, "-m", "symposia_worker.commands.pool", "--broker", f"redis://127.0.0.1:{parts.port}{parts.path}",
               "--store", f"{s3.endpoint_url}/{s3.bucket}", "--device", "cpu:9", "--memory", "30MB", "--model", "lab/b", "--engine", "torch"]
    with (tmp_path / "log").open("wb") as log:
        far = subprocess.Popen(command, env=environ, cwd=tmp_path, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        # Then it fetches the weights, serves them, and answers
        name = pool_name_here("pool-cpu-9", socket.gethostname())
        wait_for(lambda: "lab/b" in lab.client.ledger.workers()[name]["models"], PATIENCE_S)
        assert answered_by(lab, "lab/b") == name
        assert (tmp_path / ".symposia" / "models").is_dir() or list(tmp_path.rglob("*.safetensors"))
        # And the placement names it like any other
        version = Desired(lab.client.ledger).write({name: [Assigned(checkpoint="lab/c")]})
        wait_for(lambda: lab.client.ledger.workers()[name]["placement"] == version and lab.client.ledger.workers()[name]["models"] == ["lab/c"], PATIENCE_S)
        assert answered_by(lab, "lab/c") == name
    finally:
        far.send_signal(signal.SIGTERM)
        far.wait(60)
        Desired(lab.client.ledger).write({})
