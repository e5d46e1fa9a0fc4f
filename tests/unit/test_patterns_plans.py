"""Plans and how they are carried out: hierarchical and specialist_team."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rehearsing import Scripted, by_member, job_of, play
from symposia_shared.errors import BadInput
from symposia_shared.patterns.hierarchical import ASPECTS
from symposia_shared.patterns.plans import Flaw, Plan, example, read_plan
from symposia_shared.play import Played, Round, advance, check_graph
from symposia_shared.turns import Abstention, Completion, Reply, Turn


def plan_of(*after: Sequence[int], who: Sequence[int] = ()) -> str:
    """A plan whose part n (from 1) follows ``after[n - 1]``."""
    return json.dumps({"subtasks": [
        {"id": n, "task": f"task {n}", "after": list(a), **({"who": who[n - 1]} if who else {})} for n, a in enumerate(after, 1)
    ]})


def read(text: str | None, *, workers: int = 3, most: int = 8, assigned: bool = False) -> Plan | Flaw:
    return read_plan(text, workers=workers, most=most, assigned=assigned)


def test_a_plan_is_found_in_what_surrounds_it_and_its_parts_go_round_the_workers() -> None:
    found = read(f"Sure! Here is the {{plan}}:\n```json\n{plan_of([], [], [1, 2], [3])}\n```\nGood luck {{}}")
    assert isinstance(found, Plan)
    assert [p.after for p in found.parts] == [(), (), (0, 1), (2,)]
    assert [p.worker for p in found.parts] == [0, 1, 2, 0]


@pytest.mark.parametrize(("text", "why"), [
    (None, "no JSON object"), ("", "no JSON object"), ("I will plan it.", "no JSON object"), ('{"subtasks": "all"}', "no JSON object"),
    ("[" * 100_000, "no JSON object"), ('{"a":' * 100_000, "no JSON object"),
    ('{"subtasks": []}', "there are 0 subtasks; give 1 to 8"), (plan_of(*[[]] * 9), "there are 9 subtasks"),
    ('{"subtasks": ["a", "b"]}', 'an "id" of its own'), ('{"subtasks": [{"id": 1, "task": "a"}, {"id": 1, "task": "b"}]}', 'an "id" of its own'),
    ('{"subtasks": [{"id": 1, "task": " "}]}', 'has no "task"'), ('{"subtasks": [{"id": 1, "task": 5}]}', 'has no "task"'),
    ('{"subtasks": [{"id": 1, "task": "a", "after": 2}]}', "is not a list"),
    (plan_of([7]), "that is not there"), ('{"subtasks": [{"id": 1, "task": "a", "after": [[1]]}]}', "that is not there"),
    (plan_of([1]), "in a circle"), (plan_of([2], [1]), "in a circle"), (plan_of([], [1, 4], [2], [3]), "in a circle"),
    (example(assigned=False), "repeats the example"),
])
def test_what_is_no_plan_is_told_why(text: str | None, why: str) -> None:
    found = read(text)
    assert isinstance(found, Flaw)
    assert why in found.why


@pytest.mark.parametrize("who", [0, 4, "1", True, None, 1.5])
def test_an_assigned_part_needs_a_worker_who_is_there(who: object) -> None:
    found = read(json.dumps({"subtasks": [{"id": 1, "who": who, "task": "a", "after": []}]}), assigned=True)
    assert isinstance(found, Flaw)
    assert "from 1 to 3" in found.why


_FIELDS = st.sampled_from(["id", "task", "after", "who", "subtasks"])
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_FIELDS, inner, max_size=4), max_leaves=15,
)
_NAME = st.integers(0, 5) | st.text(max_size=2)
_SUBTASK = st.fixed_dictionaries({"id": _NAME, "task": st.text(max_size=5), "after": st.lists(_NAME, max_size=3)})


@given(_JSON | st.fixed_dictionaries({"subtasks": st.lists(_SUBTASK, max_size=6)}))
def test_any_json_is_a_plan_that_can_be_run_or_a_flaw(raw: object) -> None:
    found = read(json.dumps(raw))
    if isinstance(found, Plan):
        check_graph([p.after for p in found.parts])
        assert 1 <= len(found.parts) <= 8
        assert all(0 <= p.worker < 3 and p.task.strip() for p in found.parts)
    else:
        assert found.why


def led(*said: str | None, workers: str | None = "a result") -> Scripted:
    """The leader m0 says ``said`` in turn (the last repeats), the workers say ``workers``."""
    left = list(said)

    def say(number: int, place: int, turn: Turn) -> str | None:
        if turn.member == "m0":
            return left.pop(0) if len(left) > 1 else left[0]
        return workers and f"{workers} of {turn.member}, round {number} place {place}"

    return Scripted(say)


def test_the_leaders_plan_is_one_round_in_which_each_part_hears_what_it_follows() -> None:
    script = led(plan_of([], [], [1, 2]), "Missing: none", "The whole.")
    found = play(job_of("hierarchical", 4), script)
    assert found.verdict is not None
    assert (found.verdict.answer, found.verdict.spoken_by) == ("The whole.", "m0")
    assert found.verdict.notes == {"plan": "planned", "subtasks": 3, "done_again": [], "without": []}
    assert script.members() == [["m0"], ["m1", "m2", "m3"], ["m0"], ["m0"]]
    assert [t.turn.after for t in found.rounds[1].turns] == [(), (), (0, 1)]
    third = script.prompt(1, 2)
    assert "Your part: task 3" in third
    assert 'Result of "task 1":\na result of m1' in third
    assert 'Result of "task 2":\na result of m2' in third
    assert "Result of" not in script.prompt(1, 0)
    assert "Part 2: task 2\na result of m2" in script.prompt(3)


def test_a_part_starts_when_those_it_follows_have_ended_whatever_else_is_still_out() -> None:
    job = job_of("hierarchical", 3)
    first = advance(job, [])
    assert isinstance(first, Round)
    planned = [Played(first.digest, (Completion(text=plan_of([], [], [1])),))]
    step = advance(job, planned)
    assert isinstance(step, Round)
    inn: list[Reply | None] = [Completion(text="done early"), None, None]
    assert "done early" in step.asked(2, inn).messages[-1].content


def test_a_part_whose_forerunner_failed_is_told_to_do_without() -> None:
    def say(number: int, place: int, turn: Turn) -> str | None:
        if number == 0:
            return plan_of([], [1])
        return None if (number, place) == (1, 0) else f"said {number}.{place}"

    script = Scripted(say)
    play(job_of("hierarchical", 3), script)
    assert "nobody answered; do without it" in script.prompt(1, 1)


def test_a_flawed_plan_is_repaired_once() -> None:
    script = led(plan_of([2], [1]), plan_of([], [1]), "Missing: none", "The whole.")
    found = play(job_of("hierarchical", 3), script)
    assert found.verdict is not None
    assert found.verdict.notes["plan"] == "repaired"
    assert "wait for one another in a circle" in script.prompt(1)


@pytest.mark.parametrize("said", ["garbage", plan_of([2], [1]), example(assigned=False), None])
def test_where_no_plan_comes_the_task_is_split_by_rule(said: str | None) -> None:
    script = led(said)
    found = play(job_of("hierarchical", 4), script)
    assert found.verdict is not None
    assert found.verdict.notes["plan"] == "split"
    work = 1 if said is None else 2
    assert [t.turn.member for t in found.rounds[work].turns] == ["m1", "m2", "m3"]
    assert all(ASPECTS[i] in script.prompt(work, i) for i in range(3))


def test_what_is_missing_is_given_once_to_the_next_worker() -> None:
    def say(number: int, place: int, turn: Turn) -> str | None:
        if turn.member == "m0":
            return {0: plan_of([], [], [2]), 2: "Missing: 1, 77", 4: "The whole."}[number]
        return None if (number, place) == (1, 1) else f"said {number}.{place}"

    script = Scripted(say)
    found = play(job_of("hierarchical", 4), script)
    assert found.verdict is not None
    assert found.verdict.notes == {"plan": "planned", "subtasks": 3, "done_again": [1, 2], "without": []}
    assert script.members()[3] == ["m2", "m3"], "part 1 was m1's and part 2 was m2's"
    assert "Part 1: task 1\nsaid 3.0" in script.prompt(4)
    assert "Part 3: task 3\nsaid 1.2" in script.prompt(4)


def test_a_leader_that_falls_silent_leaves_the_parts_joined() -> None:
    found = play(job_of("hierarchical", 3), led(plan_of([], [1]), None))
    assert found.verdict is not None
    assert found.verdict.spoken_by is None
    assert found.verdict.answer == "task 1:\na result of m1, round 1 place 0\n\ntask 2:\na result of m2, round 1 place 1"


def test_workers_who_all_fail_are_no_quorum() -> None:
    found = play(job_of("hierarchical", 3), led(plan_of([], []), workers=None))
    assert found.error is not None
    assert found.error.type == "NoQuorum"


def test_a_quorum_above_the_number_of_parts_asks_for_all_parts() -> None:
    assert play(job_of("hierarchical", 4, quorum=4), led(plan_of([], []), "Missing: none", "Whole.")).verdict is not None


def test_the_coverage_turn_may_be_left_out() -> None:
    script = led(plan_of([], []), "The whole.")
    assert len(play(job_of("hierarchical", 3, check_coverage=False), script).rounds) == 3


def test_the_integrator_splits_by_speciality_and_only_who_is_needed_works() -> None:
    def say(number: int, place: int, turn: Turn) -> str:
        return plan_of([], [1], who=[2, 1]) if number == 0 else f"{turn.member} in round {number}"

    script = Scripted(say)
    found = play(job_of("specialist_team", 4, specialities=["law", "tax", "poetry"]), script)
    assert found.verdict is not None
    assert (found.verdict.answer, found.verdict.spoken_by) == ("m3 in round 2", "m3")
    assert script.members() == [["m3"], ["m1", "m0"], ["m3"]]
    assert "1. law\n2. tax\n3. poetry" in script.prompt(0)
    assert "m1 in round 1" in script.prompt(1, 1)
    assert "Your speciality:\ntax" in script.prompt(1, 0)


def test_unplanned_specialists_work_in_their_order_and_see_all_earlier_work() -> None:
    script = by_member(m0="facts", m1="method", m2="check", m3="the answer")
    found = play(job_of("specialist_team", 4, planned=False), script)
    assert found.verdict is not None
    assert found.verdict.answer == "the answer"
    assert [t.turn.after for t in found.rounds[0].turns] == [(), (0,), (0, 1)]
    last = script.prompt(0, 2)
    assert "facts" in last
    assert "method" in last


def test_a_speciality_is_the_one_given_or_the_members_role() -> None:
    members = [{"model": "m0", "role": "You know  the law."}, {"model": "m1"}, {"model": "m2"}]
    script = Scripted(lambda number, place, turn: "x")
    play(job_of("specialist_team", 3).parse({"prompt": "p", "members": members}), script)
    assert "1. You know the law.\n2. solution" in script.prompt(0)
    with pytest.raises(BadInput, match="1 specialities and 2 specialists"):
        job_of("specialist_team", 3, specialities=["law"])


def test_an_abstaining_reply_is_not_taken_for_a_plan() -> None:
    job = job_of("hierarchical", 3)
    first = advance(job, [])
    assert isinstance(first, Round)
    step = advance(job, [Played(first.digest, (Abstention(cause="timeout", message=plan_of([])),))])
    assert isinstance(step, Round)
    assert len(step.turns) == 2, "the split by rule: one part for each worker"
