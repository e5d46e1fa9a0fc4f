from __future__ import annotations

from symposia_shared.prompts import Sampling, user
from symposia_worker.engines.protocol import Done, Event, Failed, Generate, Load
from symposia_worker.engines.scripted import ScriptedEngine


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def engine_at(clock: Clock) -> ScriptedEngine:
    return ScriptedEngine(clock=clock, wall=clock)


def ask(engine: ScriptedEngine, request_id: str, model: str, *, stream: bool = False, **sampling: object) -> None:
    engine.admit(Generate(id=request_id, checkpoint=model, messages=user("hello there"), sampling=Sampling(**sampling), stream=stream))


def kinds(events: object) -> list[str]:
    return [e.kind for e in events]  # type: ignore[attr-defined]


def test_an_echo_is_done_in_one_step_with_its_first_token_told() -> None:
    engine = engine_at(Clock())
    ask(engine, "a", "test/echo")
    events = engine.step()
    assert kinds(events) == ["first", "done"]
    assert isinstance(events[-1], Done)
    assert events[-1].completion.text == "hello there"
    assert not engine.busy


def test_a_slow_model_speaks_over_its_time_and_holds_nobody_up() -> None:
    clock = Clock()
    engine = engine_at(clock)
    ask(engine, "slow", "test/slow:1000")
    ask(engine, "quick", "test/echo")

    assert kinds(engine.step()) == ["first", "done"]  # the quick one
    assert engine.rest_s == 0.5
    clock.now += 0.5
    assert kinds(engine.step()) == ["first"]
    clock.now += 0.49
    assert list(engine.step()) == []
    clock.now += 0.02
    (done,) = engine.step()
    assert isinstance(done, Done)
    assert done.completion.text == "slow 1000"
    assert done.completion.timing.first_token_at == 100.5


def test_a_slow_model_is_cancelled_between_two_steps() -> None:
    clock = Clock()
    engine = engine_at(clock)
    ask(engine, "slow", "test/slow:1000")
    clock.now += 0.6
    engine.step()
    assert engine.cancel("slow")
    clock.now += 10
    assert list(engine.step()) == []
    assert not engine.cancel("slow")


def test_twenty_echoes_share_one_forward_pass() -> None:
    engine = engine_at(Clock())
    for n in range(20):
        ask(engine, str(n), "test/echo")
    assert sum(isinstance(e, Done) for e in engine.step()) == 20
    assert engine.forward_passes == 1


def test_streamed_deltas_joined_are_the_text_without_its_stop_string() -> None:
    clock = Clock()
    engine = engine_at(clock)
    ask(engine, "a", "test/slow:2000", stream=True, stop=(" 20",))
    events: list[Event] = []
    for _ in range(20):
        clock.now += 0.25
        events += engine.step()
    assert "".join(e.text for e in events if e.kind == "delta") == "slow"
    assert events[-1].kind == "done"


def test_a_failing_model_fails_and_the_others_go_on() -> None:
    engine = engine_at(Clock())
    ask(engine, "bad", "test/failing:throttled")
    ask(engine, "good", "test/echo")
    events = list(engine.step())
    assert next(e for e in events if isinstance(e, Failed)).cause == "throttled"
    assert events[-1].kind == "done"


def test_unloading_a_scripted_model_gives_its_turns_back_as_throttled() -> None:
    engine = engine_at(Clock())
    assert engine.load(Load(checkpoint="test/slow:9000")).context == 1_000_000
    ask(engine, "a", "test/slow:9000")
    (failed,) = engine.unload("test/slow:9000")
    assert isinstance(failed, Failed)
    assert failed.cause == "throttled"
    assert not engine.busy
