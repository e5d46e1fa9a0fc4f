"""An endpoint as a device of a stack: its models are members like any other."""

from __future__ import annotations

import contextlib
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from stack import SYMPOSIA, Stack, clean_environ, running_stack, wait_for

from endpoint import Says, StandIn, chat, error, plain, stand_in

pytest.importorskip("xllamacpp", reason="llama.cpp's server comes with pip install 'symposia[test]'")
pytest.importorskip("gguf", reason="the tiny model is written with gguf, of pip install 'symposia[worker]'")

from llamacpp import llamacpp_server, tiny_gguf
from symposia import Completion, Ensemble, Inference, Member, Sampling
from symposia_shared.prompts import ChoiceForm

SECRET = "sk-very-secret-0123456789"


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack with two devices: this machine, which serves the scripted checkpoints, and llama.cpp's server."""
    gguf = tiny_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")
    with llamacpp_server(gguf, "lab/tiny") as url:
        flags = ("--test-models", "--devices", f"cpu,openai:{url}", "--concurrency", "4")
        with running_stack(tmp_path_factory.mktemp("stack"), *flags, SYMPOSIA_OPENAI_API_KEY=SECRET) as running:
            yield running


@contextlib.contextmanager
def worker(stack: Stack, server: StandIn, *options: str, **environ: str) -> Iterator[subprocess.Popen[str]]:
    """``symposia worker`` on a scripted server, from ready to stopped."""
    command = [*SYMPOSIA, "worker", "--device", f"openai:{server.url}", "--dir", str(stack.folder), *options]
    process = subprocess.Popen(command, env=clean_environ(**environ), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    port = server.url.rpartition(":")[2].removesuffix("/v1")
    try:
        wait_for(lambda: process.poll() is not None or any(port in name and w.get("ready_at") for name, w in stack.client.ledger.workers().items()))
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)


def test_an_ensemble_of_both_devices_has_a_transcript_that_names_both(stack: Stack) -> None:
    form = ChoiceForm(options=("yes", "no"))
    members = (Member(model="lab/tiny"), Member(model="test/say:yes"), Member(model="test/say:no"))  # the endpoint's vote decides
    job = Ensemble(prompt="Does it work?", members=members, answer_kind="label", labels=form.options, sampling=Sampling(max_tokens=8, form=form))
    result = stack.client.submit(job).result(timeout=120)
    turns = {t.turn.model: t.reply for t in result.rounds[0].turns}
    assert set(turns) == {"lab/tiny", "test/say:yes", "test/say:no"}
    ours, theirs = turns[f"test/say:{result.answer}"], turns["lab/tiny"]
    assert isinstance(ours, Completion)
    assert isinstance(theirs, Completion)
    assert ours.pool.startswith("pool-cpu")
    assert theirs.pool.startswith("pool-openai-127.0.0.1-")
    assert theirs.text == result.answer
    assert theirs.usage.completion_tokens > 0
    assert theirs.logprob_mean is not None


def test_many_jobs_share_the_endpoint_and_all_are_answered(stack: Stack) -> None:
    handles = [stack.client.submit(Inference(model="lab/tiny", prompt=f"question {n}", sampling=Sampling(max_tokens=10))) for n in range(30)]
    results = [h.result(timeout=120) for h in handles]
    assert all(r.state == "done" and r.answer for r in results)


def test_the_key_is_nowhere_but_in_the_endpoints_own_processes(stack: Stack) -> None:
    stack.client.ask("a question", model="lab/tiny", sampling=Sampling(max_tokens=4))
    holds = [p for p in stack.folder.rglob("*") if p.is_file() and SECRET.encode() in p.read_bytes()]
    assert holds == []  # logs, Redis' files, S3's files
    assert SECRET not in str(stack.client.ledger.workers()) + str(stack.client.ledger.placed())
    if Path("/proc").exists():
        pids = {p["role"] + (p["device"] or ""): p["pid"] for p in stack.json("info")["processes"]}
        holders = {role for role, pid in pids.items() if SECRET.encode() in Path(f"/proc/{pid}/environ").read_bytes()}
        assert {role.partition(":")[0] for role in holders} == {"poolopenai", "engineopenai"}


def test_a_hosted_model_is_served_under_a_name_of_ours(stack: Stack) -> None:
    with stand_in(models=[{"id": "qwen2:0.5b", "owned_by": "library"}, {"id": "x:y"}]) as server:
        server.always = chat("from", " afar")
        with worker(stack, server, "--model", "lab/qwen2-0.5b=qwen2:0.5b", "--max-concurrency", "3", "--api-key-env", "MINE", MINE=SECRET):
            assert stack.client.ask("Where from?", model="lab/qwen2-0.5b") == "from afar"
        assert server.asked[-1].body["model"] == "qwen2:0.5b"
        assert {s.headers["authorization"] for s in server.seen} == {f"Bearer {SECRET}"}


def test_a_turn_one_endpoint_cannot_answer_is_answered_by_another(stack: Stack) -> None:
    listed = [{"id": "lab/shared", "owned_by": "system"}]
    with stand_in(models=listed) as broken, stand_in(models=listed) as sound:
        broken.always = error(429, "come back tomorrow", Retry_After="86400")
        broken.held, sound.always = True, chat("sound", each_s=0.3)  # slow enough for the broken one to ask for more
        with worker(stack, broken):
            handle = stack.client.submit(Inference(model="lab/shared", prompt="?"))
            wait_for(lambda: broken.asked)
            with worker(stack, sound, "--max-concurrency", "1"):
                handles = [handle, *(stack.client.submit(Inference(model="lab/shared", prompt=f"{n}")) for n in range(10))]
                broken.held = False
                replies = [h.result(timeout=120) for h in handles]
        assert {r.answer for r in replies} == {"sound"}, replies
        assert replies[0].rounds[0].turns[0].reply.pool.startswith("pool-openai")


def test_a_turn_no_endpoint_can_answer_is_asked_again_with_pauses_until_its_deadline(stack: Stack) -> None:
    with stand_in(models=[{"id": "lab/spent", "owned_by": "system"}]) as server:
        server.always = plain({"error": {"message": "You exceeded your current quota", "code": "insufficient_quota"}}, 429)
        with worker(stack, server):
            result = stack.client.submit(Inference(model="lab/spent", prompt="?", deadline_s=14)).wait(timeout=120)
        assert (result.state, result.rounds[0].turns[0].reply.kind) == ("failed", "abstention")
        assert 2 <= len(server.asked) <= 3  # a pool takes nothing for 10 s after what it could not answer


@pytest.mark.parametrize(("models", "options", "said"), [
    (error(401, f"Incorrect API key provided: {SECRET}"), (), "SYMPOSIA_OPENAI_API_KEY"), ([{"id": "a:b"}], (), "--model a-b=a:b"),
    ([{"id": "one"}], ("--model", "two"), "it lists one"), ([{"id": "one"}], ("--api-key-env", "NOT_SET"), "NOT_SET"),
])
def test_a_worker_that_cannot_serve_says_why(stack: Stack, models: Says | list[dict[str, str]], options: tuple[str, ...], said: str) -> None:
    with stand_in(models=models) as server:
        command = [*SYMPOSIA, "worker", "--device", f"openai:{server.url}", "--dir", str(stack.folder), *options]
        ran = subprocess.run(command, env=clean_environ(SYMPOSIA_OPENAI_API_KEY=SECRET), capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 2, ran.stderr[-2000:]
    assert said in ran.stderr
    assert SECRET not in ran.stderr + ran.stdout
