from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from symposia_shared.errors import BadInput, Damaged, Unavailable
from symposia_shared.prompts import Sampling, user
from symposia_shared.turns import Abstention, Completion, Turn
from symposia_worker.engines.client import EngineProcess, engine_environ
from tiny import tiny_checkpoint

PATIENCE_S = 30.0


class Pool:
    """An engine process and all that it told."""

    def __init__(self, **options: object) -> None:
        self.deaths: list[list[str]] = []
        self.replies: dict[str, list[Completion | Abstention]] = {}
        self.firsts: dict[str, float] = {}
        self.engine = EngineProcess("cpu", 1 << 30, on_death=self.deaths.append, **options)  # type: ignore[arg-type]

    def ask(self, turn_id: str, model: str = "test/echo", prompt: str = "hello there", **sampling: object) -> None:
        turn = Turn(member="m", model=model, messages=user(prompt), sampling=Sampling(**sampling))
        self.replies[turn_id] = []
        self.engine.generate(turn_id, turn, lambda at: self.firsts.__setitem__(turn_id, at), self.replies[turn_id].append)

    def reply(self, turn_id: str) -> Completion | Abstention:
        until(lambda: bool(self.replies[turn_id]))
        return self.replies[turn_id][0]


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def gone(pid: int) -> bool:
    """Whether a process has ended (a zombie of another parent has)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


@pytest.fixture
def pool() -> Iterator[Pool]:
    pool = Pool(hang_after_s=1.5)
    pool.engine.start()
    yield pool
    pool.engine.stop()


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_checkpoint(tmp_path_factory.mktemp("llama"), "llama", eos_token_id=None))


@pytest.fixture(scope="module")
def warm(llama: str) -> Iterator[Pool]:
    """A pool whose process has a real (tiny) checkpoint resident."""
    pool = Pool()
    pool.engine.start()
    loaded = pool.engine.load("tiny/llama", llama)
    assert (loaded.context, loaded.family, loaded.instruct) == (256, "llama", False)
    assert loaded.bytes > 100_000
    yield pool
    pool.engine.stop()


def test_the_pools_side_never_imports_torch() -> None:
    code = "import sys, symposia_worker.engines.client; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


def test_a_process_with_test_models_only_does_not_load_torch(pool: Pool) -> None:
    pool.ask("a")
    assert isinstance(pool.reply("a"), Completion)
    if sys.platform == "linux":
        assert "libtorch" not in Path(f"/proc/{pool.engine.pid}/maps").read_text()


def test_every_request_ends_in_exactly_one_reply(pool: Pool) -> None:
    models = ["test/echo", "test/say:x", "test/slow:50", "test/garbage", "test/failing:bug", "test/failing:nonsense", "no/such"]
    for n in range(210):
        pool.ask(str(n), models[n % len(models)])
    until(lambda: not pool.engine.in_flight)
    assert all(len(replies) == 1 for replies in pool.replies.values())
    assert {r[0].kind for n, r in pool.replies.items() if int(n) % len(models) < 4} == {"completion"}
    assert {r[0].kind for n, r in pool.replies.items() if int(n) % len(models) >= 4} == {"abstention"}


def test_a_cancelled_turn_abstains_as_cancelled(pool: Pool) -> None:
    pool.ask("a", "test/slow:600000")
    pool.engine.cancel("a")
    reply = pool.reply("a")
    assert isinstance(reply, Abstention)
    assert reply.cause == "cancelled"


def test_an_id_in_flight_is_not_asked_twice(pool: Pool) -> None:
    pool.ask("a", "test/slow:600000")
    with pytest.raises(BadInput, match="in flight already"):
        pool.ask("a")


def test_an_idle_process_pulses(pool: Pool) -> None:
    until(lambda: pool.engine.pulse is not None)
    before = pool.engine.pulse
    until(lambda: pool.engine.pulse is not before)
    assert pool.engine.pulse is not None
    assert abs(pool.engine.pulse.at - time.time()) < PATIENCE_S


def test_a_killed_process_hands_its_turns_back_once_and_restarts(pool: Pool) -> None:
    pool.ask("done")
    pool.reply("done")
    pool.ask("a", "test/slow:600000")
    pool.ask("b", "test/slow:600000")
    first = pool.engine.pid
    pool.engine.kill()
    until(lambda: bool(pool.deaths))
    assert sorted(pool.deaths[0]) == ["a", "b"]
    with pytest.raises(Unavailable):
        pool.ask("c")

    pool.engine.restart()
    assert pool.engine.pid != first
    pool.ask("a")
    assert isinstance(pool.reply("a"), Completion)
    assert pool.deaths == [pool.deaths[0]]
    assert pool.replies["b"] == []


def test_a_turn_that_crashes_the_process_takes_it_down_as_a_death(pool: Pool) -> None:
    pool.ask("a", "test/failing:crash")
    until(lambda: bool(pool.deaths))
    assert pool.deaths == [["a"]]


def test_a_process_that_hangs_is_killed_and_its_turns_handed_back(pool: Pool) -> None:
    pool.ask("a", "test/slow:600000")
    pool.ask("b", "test/failing:hang")
    pid = pool.engine.pid
    assert pid is not None
    until(lambda: bool(pool.deaths))
    assert sorted(pool.deaths[0]) == ["a", "b"]
    assert gone(pid)


def test_a_process_that_idles_for_long_is_not_taken_for_hung(pool: Pool) -> None:
    time.sleep(2.0)  # longer than hang_after_s
    pool.ask("a", "test/slow:800")
    assert isinstance(pool.reply("a"), Completion)
    assert pool.deaths == []


def test_signals_of_the_terminal_are_the_pools_to_decide(pool: Pool) -> None:
    assert pool.engine.pid is not None
    os.kill(pool.engine.pid, signal.SIGINT)
    os.kill(pool.engine.pid, signal.SIGTERM)
    pool.ask("a", "test/slow:100")
    assert isinstance(pool.reply("a"), Completion)


def test_stop_returns_what_was_in_flight_and_calls_nobody(pool: Pool) -> None:
    pool.ask("a", "test/slow:600000")
    assert pool.engine.stop() == ["a"]
    assert not pool.engine.alive
    assert pool.deaths == []
    assert pool.replies["a"] == []


def test_a_process_started_by_a_thread_that_ends_lives_on() -> None:
    """Linux sends the parent-death signal when the spawning *thread* ends."""
    pool = Pool()
    starter = threading.Thread(target=pool.engine.start)
    starter.start()
    starter.join()
    time.sleep(0.5)
    pool.ask("a")
    assert isinstance(pool.reply("a"), Completion)
    pool.engine.stop()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("model", ["test/slow:600000", "test/failing:hang"])
def test_a_process_whose_pool_is_killed_dies_with_it(model: str) -> None:
    code = (
        "import os, signal, time\n"
        "from symposia_worker.engines.client import EngineProcess\n"
        "from symposia_shared.turns import Turn\n"
        "from symposia_shared.prompts import user\n"
        "e = EngineProcess()\n"
        "print(e.start(), flush=True)\n"
        f"e.generate('a', Turn(member='m', model={model!r}, messages=user('x')), None, print)\n"
        "time.sleep(0.3)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    pid = int(killed.stdout)
    until(lambda: gone(pid))


def test_a_process_that_cannot_start_says_so() -> None:
    engine = EngineProcess(python="/bin/false")
    with pytest.raises(Unavailable, match="before it was ready"):
        engine.start()
    assert engine.deaths == 0


def test_the_environment_has_passive_threads_and_none_of_the_pools_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYMPOSIA_S3__SECRET_KEY", "s")
    monkeypatch.setenv("SYMPOSIA_BROKER_URL", "redis://:s@localhost")
    environ = engine_environ(3)
    assert (environ["OMP_NUM_THREADS"], environ["OMP_WAIT_POLICY"]) == ("3", "PASSIVE")
    assert "SYMPOSIA_S3__SECRET_KEY" not in environ
    assert "SYMPOSIA_BROKER_URL" not in environ


def test_two_turns_share_forward_passes_and_the_second_begins_before_the_first_ends(warm: Pool) -> None:
    before = warm.engine.pulse.forward_passes if warm.engine.pulse else 0
    warm.ask("first", "tiny/llama", "def add(a, b)", max_tokens=200)
    until(lambda: "first" in warm.firsts)
    warm.ask("second", "tiny/llama", "What is the capital", max_tokens=100)
    first, second = warm.reply("first"), warm.reply("second")
    assert isinstance(first, Completion)
    assert isinstance(second, Completion)
    assert (first.usage.completion_tokens, second.usage.completion_tokens) == (200, 100)
    assert (first.engine, second.engine) == ("torch float32", "torch float32")
    assert first.timing.last_token_at is not None
    assert warm.firsts["second"] < first.timing.last_token_at
    until(lambda: warm.engine.pulse is not None and warm.engine.pulse.running == 0)
    assert warm.engine.pulse is not None
    assert warm.engine.pulse.forward_passes - before < 300


def test_a_restarted_process_has_loaded_what_the_last_one_held(warm: Pool) -> None:
    warm.engine.kill()
    until(lambda: bool(warm.deaths))
    assert warm.deaths == [[]]
    warm.engine.restart()
    warm.ask("restarted", "tiny/llama", max_tokens=3)
    assert isinstance(warm.reply("restarted"), Completion)


def test_a_refused_load_is_a_typed_error_and_the_process_goes_on(warm: Pool, tmp_path: Path) -> None:
    with pytest.raises(Damaged, match=r"no config\.json"):
        warm.engine.load("tiny/none", str(tmp_path))
    with pytest.raises(BadInput, match="no engine 'abacus'"):
        warm.engine.load("tiny/none", str(tmp_path), engine="abacus")
    warm.ask("after", "tiny/llama", max_tokens=2)
    assert isinstance(warm.reply("after"), Completion)


def test_a_prompt_that_is_too_long_abstains_before_any_decode(warm: Pool) -> None:
    warm.ask("long", "tiny/llama", "word " * 2000)
    reply = warm.reply("long")
    assert isinstance(reply, Abstention)
    assert reply.cause == "prompt_too_long"
    assert "256" in reply.message


def test_an_unloaded_checkpoint_is_throttled_until_it_is_loaded_again(warm: Pool, llama: str) -> None:
    warm.engine.load("tiny/other", llama)
    warm.engine.unload("tiny/other")
    warm.ask("other", "tiny/other")
    reply = warm.reply("other")
    assert isinstance(reply, Abstention)
    assert reply.cause == "throttled"


def test_what_is_asked_together_reaches_the_process_in_one_piece(pool: Pool) -> None:
    life = pool.engine._life
    assert life is not None
    with pool.engine.together():
        for n in range(20):
            pool.ask(f"t{n}", prompt=f"hello {n}")
        # Given that nothing was sent yet, although all of it is in flight, and that another thread asks as ever
        assert set(pool.engine.in_flight) == {f"t{n}" for n in range(20)}
        beside = threading.Thread(target=pool.ask, args=("beside",))
        beside.start()
        beside.join()
        assert isinstance(pool.reply("beside"), Completion)
        assert not any(pool.replies[f"t{n}"] for n in range(20))
    # Then each of them is answered
    assert all(isinstance(pool.reply(f"t{n}"), Completion) for n in range(20))
    assert isinstance((pool.ask("after"), pool.reply("after"))[1], Completion)


def test_what_is_cancelled_before_it_was_sent_is_cancelled_all_the_same(warm: Pool) -> None:
    with warm.engine.together():
        warm.ask("early", "tiny/llama", max_tokens=200)
        warm.engine.cancel("early")
        warm.ask("kept", "tiny/llama", max_tokens=2)
    reply = warm.reply("early")
    assert isinstance(reply, Abstention)
    assert reply.cause == "cancelled"
    assert isinstance(warm.reply("kept"), Completion)


def test_what_was_held_for_a_process_that_died_is_told_as_lost(pool: Pool) -> None:
    pid = pool.engine.pid
    assert pid is not None
    with pool.engine.together():
        pool.ask("lost")
        os.kill(pid, signal.SIGKILL)
        until(lambda: bool(pool.deaths))
    assert pool.deaths == [["lost"]]
    assert pool.replies["lost"] == []
