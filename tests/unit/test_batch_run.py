"""``symposia run-batch``: a file through one engine process, killed, resumed, refused."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from symposia_shared.errors import BadInput, Unavailable
from symposia_shared.turns import Abstention, Completion, Turn, Usage
from symposia_worker.batchrun import run as run_module
from symposia_worker.batchrun import waiting as waiting_module
from symposia_worker.batchrun.files import Output, count_lines, read_lines
from symposia_worker.batchrun.run import BatchRun, Orders, Tally
from symposia_worker.batchrun.waiting import Waiting

ABLE = ("generate", "embed", "choice")


def chat(custom_id: str, text: str = "hello", **body: Any) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions",
            "body": {"model": "auto", "messages": [{"role": "user", "content": text}], **body}}


def wrote(path: Path, *lines: Any) -> Path:
    path.write_bytes(b"".join((x if isinstance(x, bytes) else json.dumps(x).encode()) + b"\n" for x in lines))
    return path


def answers(path: Path) -> list[dict[str, Any]]:
    return [json.loads(x) for x in path.read_bytes().splitlines()]


def content(answer: dict[str, Any]) -> str:
    return str(answer["response"]["body"]["choices"][0]["message"]["content"])


def command(source: Path, target: Path, *flags: str, model: str = "test/echo") -> list[str]:
    return [sys.executable, "-m", "symposia_worker.commands.run_batch", "-i", str(source), "-o", str(target), "--model", model, *flags]


def ran(source: Path, target: Path, *flags: str, model: str = "test/echo", expect: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command(source, target, *flags, model=model), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == expect, done.stdout + done.stderr
    return done


class Scripted:
    """An engine that answers when it is told to, in the order it is told to, and dies at will."""

    def __init__(self) -> None:
        self.asked: dict[str, tuple[Turn, Callable[[Completion | Abstention], None]]] = {}
        self.log: list[str] = []
        self.most = 0
        self.restarts = 0
        self.alive = True
        self.on_ask: Callable[[str], None] = lambda _: None

    def generate(self, turn_id: str, turn: Turn, on_first: object, on_done: Callable[[Completion | Abstention], None]) -> None:
        if not self.alive:
            raise Unavailable("no process runs")
        self.asked[turn_id] = (turn, on_done)
        self.log.append(turn_id)
        self.most = max(self.most, len(self.asked))
        self.on_ask(turn_id)

    def answer(self, turn_id: str) -> None:
        turn, done = self.asked.pop(turn_id)
        done(Completion(text=turn.messages[-1].content, usage=Usage(prompt_tokens=1, completion_tokens=1)))

    def restart(self) -> None:
        self.restarts += 1
        self.alive = True


def batch(tmp_path: Path, *lines: Any, options: str = "o", told: Callable[[Tally], None] = lambda _: None, **orders: Any) -> tuple[BatchRun, Output]:
    source = wrote(tmp_path / "in.jsonl", *lines)
    output = Output(tmp_path / "out.jsonl")
    rows = read_lines(source, options=options)
    kept = output.resume(rows)
    return BatchRun(Orders(**({"model": "test/echo", "capabilities": ABLE} | orders)), rows, output, kept, total=count_lines(source), told=told), output


def test_answers_come_in_the_inputs_order_whatever_order_they_were_given_in(tmp_path: Path) -> None:
    run, output = batch(tmp_path, *[chat(f"c{i}", f"text {i}") for i in range(6)], window=3)
    engine = Scripted()
    engine.on_ask = lambda _: [engine.answer(x) for x in reversed(list(engine.asked))] if len(engine.asked) == 3 else None
    with output:
        tally = run.run(engine)
    assert [a["custom_id"] for a in answers(output.path)] == [f"c{i}" for i in range(6)]
    assert (tally.written, tally.completion_tokens, engine.most) == (6, 6, 3)


def test_what_waits_for_its_place_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "READ_AHEAD", 10)
    run, output = batch(tmp_path, *[chat(f"c{i}") for i in range(100)], window=4)
    engine, furthest = Scripted(), 0

    def on_ask(turn_id: str) -> None:
        nonlocal furthest
        furthest = max(furthest, int(turn_id.split(".")[0]))
        if turn_id != "1.0":
            engine.answer(turn_id)
        if len(engine.log) == 10:  # all that may be read beside the first line
            engine.answer("1.0")
            assert furthest == 10

    engine.on_ask = on_ask
    with output:
        run.run(engine)
    assert len(answers(output.path)) == 100


def test_requests_of_a_dead_engine_are_asked_again_and_counted(tmp_path: Path) -> None:
    run, output = batch(tmp_path, *[chat(f"c{i}") for i in range(4)], window=4)
    engine = Scripted()

    def on_ask(turn_id: str) -> None:
        if len(engine.log) == 4:
            ids, engine.asked, engine.alive = list(engine.asked), {}, False
            run.died(ids)
        elif engine.restarts:
            engine.answer(turn_id)

    engine.on_ask = on_ask
    with output:
        tally = run.run(engine)
    assert (tally.engine_restarts, tally.asked_again, tally.failed) == (1, 4, 0)
    assert [a["custom_id"] for a in answers(output.path)] == ["c0", "c1", "c2", "c3"]


def test_a_request_that_kills_every_engine_is_given_up_and_its_neighbours_are_answered(tmp_path: Path) -> None:
    run, output = batch(tmp_path, *[chat(f"c{i}", "die" if i == 1 else "live") for i in range(5)], window=3)
    engine = Scripted()

    def on_ask(turn_id: str) -> None:
        if engine.asked[turn_id][0].messages[-1].content == "die":
            ids, engine.asked, engine.alive = list(engine.asked), {}, False
            run.died(ids)
        elif len(engine.asked) == 3 or engine.restarts > 1:
            engine.answer(turn_id)

    engine.on_ask = on_ask
    with output:
        run.run(engine)
    found = answers(output.path)
    assert [a["response"]["status_code"] for a in found] == [200, 500, 200, 200, 200]
    assert found[1]["error"]["code"] == "poison"


def test_an_engine_that_does_not_come_back_leaves_a_file_to_go_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "RESTART_S", 0.0)
    run, output = batch(tmp_path, chat("a"), chat("b"), window=1)
    engine = Scripted()

    def gone() -> None:
        raise Unavailable("no memory")

    monkeypatch.setattr(engine, "restart", gone)

    def on_ask(turn_id: str) -> None:
        if turn_id == "1.0":
            engine.answer(turn_id)
        else:
            engine.asked, engine.alive = {}, False
            run.died([turn_id])

    engine.on_ask = on_ask
    with output, pytest.raises(Unavailable, match=r"does not start again: no memory.*run the same command"):
        run.run(engine)
    assert [a["custom_id"] for a in answers(output.path)] == ["a"]


def test_orders_cap_tokens_give_a_temperature_and_a_seed_of_the_line(tmp_path: Path) -> None:
    lines = [chat("a", max_tokens=100), chat("b", max_tokens=2, temperature=0.7, seed=5), chat("c")]
    seen: list[list[Turn]] = []
    for attempt in range(2):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        run, output = batch(folder, *lines, max_tokens=8, temperature=0.0)
        engine = Scripted()
        turns: list[Turn] = []

        def on_ask(turn_id: str, engine: Scripted = engine, turns: list[Turn] = turns) -> None:
            turns.append(engine.asked[turn_id][0])
            engine.answer(turn_id)

        engine.on_ask = on_ask
        with output:
            run.run(engine)
        seen.append(turns)
    a, b, c = (t.sampling for t in seen[0])
    assert [(s.max_tokens, s.temperature) for s in (a, b, c)] == [(8, 0.0), (2, 0.7), (8, 0.0)]
    assert b.seed == 5
    assert a.seed != c.seed
    assert seen[0] == seen[1]


def test_bad_lines_become_error_lines_and_disturb_no_other(tmp_path: Path) -> None:
    source = wrote(tmp_path / "in.jsonl", chat("a", "one"), b"{broken", chat("b", tools=[{"type": "function"}]), b"", chat("a", "again"), chat("c", "two"),
                   chat("d", response_format={"type": "json_object"}), b"\xff", {**chat("e"), "url": "/v1/audio"})
    done = ran(source, tmp_path / "out.jsonl", "--json")
    found = answers(tmp_path / "out.jsonl")
    assert [(a["custom_id"], a["response"]["status_code"]) for a in found] == [
        ("a", 200), (None, 400), ("b", 400), ("a", 400), ("c", 200), ("d", 400), (None, 400), ("e", 400)]
    assert [a["error"] and (a["error"]["line"], a["error"]["code"]) for a in found] == [
        None, (2, "invalid_json_line"), (3, "invalid_request_error"), (5, "duplicate_custom_id"), None, (7, "invalid_request_error"),
        (8, "invalid_json_line"), (9, "invalid_request_error")]
    assert [content(found[i]) for i in (0, 4)] == ["one", "two"]
    assert found[2]["response"]["body"]["error"]["param"] == "tools"
    summary = json.loads(done.stdout)
    assert (summary["lines"], summary["answered"], summary["failed"]) == (8, 2, 6)


def test_all_three_endpoints_n_and_choices_are_answered(tmp_path: Path) -> None:
    text = {"custom_id": "t", "url": "/v1/completions", "body": {"model": "x", "prompt": ["a", "b"], "logprobs": 0}}
    embed = {"custom_id": "e", "url": "/v1/embeddings", "body": {"model": "x", "input": ["a", "b", "a"]}}
    source = wrote(tmp_path / "in.jsonl", chat("n", "hello", n=2), text, embed, chat("c", "yes!", structured_outputs={"choice": ["no", "yes"]}))
    ran(source, tmp_path / "out.jsonl")
    n, t, e, c = (a["response"]["body"] for a in answers(tmp_path / "out.jsonl"))
    assert [x["message"]["content"] for x in n["choices"]] == ["hello", "hello"]
    assert n["usage"] == {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
    assert [x["text"] for x in t["choices"]] == ["a", "b"]
    assert t["choices"][0]["logprobs"]["token_logprobs"] == [0.0]
    assert e["data"][0]["embedding"] == e["data"][2]["embedding"] != e["data"][1]["embedding"]
    assert c["choices"][0]["message"]["content"] == "yes"
    assert c["choices"][0]["symposia"]["options"]["yes"] > 0.5


def test_a_killed_run_goes_on_after_its_last_whole_line(tmp_path: Path) -> None:
    source = wrote(tmp_path / "in.jsonl", *[chat(f"c{i}", f"text {i}") for i in range(30)])
    target = tmp_path / "out.jsonl"
    process = subprocess.Popen(command(source, target, "--window", "2", model="test/slow:200"), stderr=subprocess.DEVNULL)
    while not target.exists() or target.read_bytes().count(b"\n") < 4:
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    before, side = target.read_bytes(), target.with_name("out.jsonl.waiting")
    waiting = set(side.read_bytes().splitlines()) - set(before.splitlines()) if side.exists() else set()
    with target.open("ab") as out:  # as a write that was torn
        out.write(b'{"id":"batch_req_')
    summary = json.loads(ran(source, target, "--window", "30", "--json", model="test/slow:200").stdout)
    assert summary["kept"] == before.count(b"\n") + len(waiting)
    assert summary["answered"] == 30 - summary["kept"]
    assert target.read_bytes().startswith(before)
    assert [a["custom_id"] for a in answers(target)] == [f"c{i}" for i in range(30)]
    assert json.loads(ran(source, target, "--json", model="test/slow:200").stdout)["answered"] == 0


def test_an_interrupted_run_leaves_whole_lines_and_says_how_to_go_on(tmp_path: Path) -> None:
    source = wrote(tmp_path / "in.jsonl", *[chat(f"c{i}") for i in range(30)])
    target = tmp_path / "out.jsonl"
    process = subprocess.Popen(command(source, target, "--window", "2", model="test/slow:200"), stderr=subprocess.PIPE, text=True,
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))  # a shell's background job would ignore it
    while not target.exists() or target.read_bytes().count(b"\n") < 4:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "run the same command to go on" in said
    assert "Traceback" not in said
    assert target.read_bytes().endswith(b"\n")
    assert json.loads(ran(source, target, "--json", "--window", "30", model="test/slow:200").stdout)["kept"] >= 4


def test_changed_input_or_options_are_refused_unless_begun_again(tmp_path: Path) -> None:
    source, target = wrote(tmp_path / "in.jsonl", chat("a"), chat("b")), tmp_path / "out.jsonl"
    ran(source, target)
    assert "options have changed" in ran(source, target, "--max-tokens", "3", expect=2).stderr
    wrote(source, chat("a", "changed"), chat("b"))
    assert "line 1 of the input" in ran(source, target, expect=2).stderr
    wrote(source, chat("a"))
    assert "more lines than the input" in ran(source, target, expect=2).stderr
    before = target.read_bytes()
    assert "more lines" in ran(source, target, expect=2).stderr
    assert target.read_bytes() == before
    ran(source, target, "--overwrite")
    assert len(answers(target)) == 1
    wrote(source, chat("a"), chat("b"), chat("c"))  # only longer: what is there stands
    assert json.loads(ran(source, target, "--json").stdout)["kept"] == 1


def test_a_file_that_is_no_output_of_ours_is_left_alone(tmp_path: Path) -> None:
    source, target = wrote(tmp_path / "in.jsonl", chat("a")), tmp_path / "precious.txt"
    target.write_text("a diary\n")
    assert "name another file" in ran(source, target, expect=2).stderr.lower()
    assert target.read_text() == "a diary\n"
    assert "is the input" in ran(source, source, expect=2).stderr
    assert "cannot be read" in ran(tmp_path / "none.jsonl", tmp_path / "out.jsonl", expect=2).stderr


def test_two_runs_cannot_write_one_file(tmp_path: Path) -> None:
    with Output(tmp_path / "out.jsonl"), pytest.raises(Unavailable, match="another run writes"):
        Output(tmp_path / "out.jsonl")


def test_a_line_that_kills_the_engine_process_ends_as_an_error(tmp_path: Path) -> None:
    source = wrote(tmp_path / "in.jsonl", *[chat(f"c{i}", "x") for i in range(2)])
    done = ran(source, tmp_path / "out.jsonl", "--json", "--window", "1", model="test/failing:crash", expect=4)
    assert [a["error"]["code"] for a in answers(tmp_path / "out.jsonl")] == ["poison", "poison"]
    summary = json.loads(done.stdout)
    assert (summary["failed"], summary["engine_restarts"], summary["asked_again"]) == (2, 8, 6)


def test_an_unknown_checkpoint_and_a_missing_folder_are_refused(tmp_path: Path) -> None:
    source = wrote(tmp_path / "in.jsonl", chat("a"))
    environ = {**os.environ, "SYMPOSIA_CACHE": str(tmp_path / "cache")}
    for model in ("nobody/nothing", "./nowhere"):
        done = subprocess.run(command(source, tmp_path / "out.jsonl", model=model), capture_output=True, text=True, env=environ, check=False)
        assert done.returncode == 2
        assert done.stderr.startswith("UnknownModel: ")


def test_an_overlong_line_is_read_in_bounded_memory_and_counted_once(tmp_path: Path) -> None:
    source = wrote(tmp_path / "in.jsonl", b"x" * 20_000_000, chat("a"))
    lines = list(read_lines(source, options="o"))
    assert [(x.number, len(x.raw) < 9_000_000) for x in lines] == [(1, True), (2, True)]
    assert count_lines(source) == 2


def test_progress_is_plain_lines_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    from symposia_worker.batchrun import progress

    told = io.StringIO()
    monkeypatch.setattr(sys, "stderr", told)
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
    with progress.shown() as tell:
        tell(Tally(lines=10, kept=2, written=4, failed=1, completion_tokens=40))
    assert told.getvalue().startswith("6 of 10 lines, 1 failed, 40 tokens, ")
    assert "s left" in told.getvalue()


def test_bad_input_of_the_output_names_the_line(tmp_path: Path) -> None:
    (tmp_path / "out.jsonl").write_text('{"response": {"request_id": "x", "status_code": 200}, "custom_id": "a"}\n')
    source = wrote(tmp_path / "in.jsonl", chat("a"))
    with Output(tmp_path / "out.jsonl") as output, pytest.raises(BadInput, match="at its line 1"):
        output.resume(read_lines(source, options="o"))


def test_a_folders_greedy_answers_by_torch_are_those_of_one_by_one_generate(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tiny import tiny_checkpoint

    folder = tiny_checkpoint(tmp_path / "a tiny one", "llama")
    prompts = ["The quick brown fox", "def add(a, b):", "42"]
    source = wrote(tmp_path / "in.jsonl", *[{"custom_id": p, "url": "/v1/completions", "body": {"model": "x", "prompt": p, "temperature": 0}} for p in prompts])
    ran(source, tmp_path / "out.jsonl", "--max-tokens", "12", "--threads", "1", "--engine", "torch", model=str(folder))
    tokenizer, network = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    for prompt, answer in zip(prompts, answers(tmp_path / "out.jsonl"), strict=True):
        ids = tokenizer(prompt, return_tensors="pt")
        told = network.generate(**ids, max_new_tokens=12, do_sample=False)[0, ids["input_ids"].shape[1]:]
        assert answer["response"]["body"]["choices"][0]["text"] == tokenizer.decode(told, skip_special_tokens=True)
        assert answer["response"]["body"]["model"] == "a-tiny-one"


def test_what_the_engine_cannot_do_with_a_checkpoint_is_an_error_line(tmp_path: Path) -> None:
    run, output = batch(tmp_path, {"custom_id": "e", "url": "/v1/embeddings", "body": {"input": "x"}}, chat("a"), capabilities=("generate",))
    engine = Scripted()
    engine.on_ask = engine.answer
    with output:
        run.run(engine)
    refused, answered = answers(output.path)
    assert "it needs embed, and it can generate" in refused["error"]["message"]
    assert content(answered) == "hello"


@pytest.mark.parametrize(("flags", "words"), [
    (("--engine", "torch", "--mode", "fast"), "exact only"), (("--engine", "openai"), "does not go with the device cpu"),
    (("--engine", "torch", "--device", "openai:http://127.0.0.1:1/v1"), "does not go with the device openai:"),
])
def test_engines_modes_and_devices_that_do_not_go_together_are_refused(tmp_path: Path, flags: tuple[str, ...], words: str) -> None:
    source = wrote(tmp_path / "in.jsonl", chat("a"))
    assert words in ran(source, tmp_path / "out.jsonl", *flags, expect=2).stderr
    assert not (tmp_path / "out.jsonl").exists()


def test_answers_that_waited_for_an_earlier_one_survive_a_kill(tmp_path: Path) -> None:
    """Only what was in flight is asked again."""
    lines = [*[chat(f"c{i}") for i in range(13)], chat("c1", "twice")]
    target, side = tmp_path / "out.jsonl", tmp_path / "out.jsonl.waiting"
    killed = os.fork()
    if killed == 0:  # answers all but the first and the last but one, and is gone
        engine = Scripted()
        engine.on_ask = lambda turn_id: None if turn_id in ("1.0", "13.0") else engine.answer(turn_id)
        run, _ = batch(tmp_path, *lines, told=lambda tally: os.kill(os.getpid(), signal.SIGKILL) if side.read_bytes().count(b"\n") == 12 else None)
        run.run(engine)
    assert os.waitpid(killed, 0)[1] == signal.SIGKILL
    assert target.read_bytes() == b""
    before = side.read_bytes()
    side.write_bytes(before + before[:30])  # as a write that was torn
    run, output = batch(tmp_path, *lines)
    again = Scripted()
    again.on_ask = again.answer
    with output:
        tally = run.run(again)
    assert again.log == ["1.0", "13.0"]
    assert (tally.kept, tally.kept_failed, tally.written, tally.failed) == (12, 1, 2, 0)
    assert [a["custom_id"] for a in answers(target)] == [*(f"c{i}" for i in range(13)), "c1"]
    assert set(before.splitlines()) <= set(target.read_bytes().splitlines())
    assert not side.exists()


def test_a_side_file_that_is_not_ours_is_left_alone_and_beginning_again_removes_ours(tmp_path: Path) -> None:
    source, side = wrote(tmp_path / "in.jsonl", chat("a")), tmp_path / "out.jsonl.waiting"
    side.write_text("a diary\n")
    assert "holds no answers" in ran(source, tmp_path / "out.jsonl", expect=2).stderr
    assert side.read_text() == "a diary\n"
    wrote(side, {"response": {"request_id": "of other options", "status_code": 200}, "custom_id": "a"})
    ran(source, tmp_path / "out.jsonl")
    assert not side.exists()
    ran(source, tmp_path / "out.jsonl", "--overwrite")
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["in.jsonl", "out.jsonl"]


def test_what_waits_is_on_the_disk_and_the_disk_is_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting_module, "_WASTE_BYTES", 10_000)
    waiting = Waiting(tmp_path / "out")
    line = json.dumps({"response": {"request_id": "r", "status_code": 200}, "custom_id": None, "body": "x" * 900}).encode() + b"\n"
    for place in range(1, 500):
        waiting.put(place, line.replace(b'"r"', b'"%d"' % place))
        if place > 5:
            assert json.loads(waiting.take(place - 5) or b"")["response"]["request_id"] == str(place - 5)
    assert waiting.path.stat().st_size < 25_000
    assert waiting.take(1000) is None
    assert [place in waiting for place in (494, 495, 499, 500)] == [False, True, True, False]
    waiting.close()
    again = Waiting(tmp_path / "out")  # as after a kill: some of it stands in the output by now
    again.forget("495")
    found = again.adopt("499", 3)
    assert found is not None
    assert not found.failed
    assert json.loads(again.take(3) or b"")["response"]["request_id"] == "499"
    assert again.adopt("499", 4) is None
    again.end()
    assert list(tmp_path.iterdir()) == []
