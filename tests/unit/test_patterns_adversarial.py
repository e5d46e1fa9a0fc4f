from __future__ import annotations

import json
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rehearsing import Scripted, job_of, play
from symposia_shared.errors import BadInput
from symposia_shared.patterns.checks import asserts_in, python_check, ruling_of
from symposia_shared.patterns.sums import wrong_sums
from symposia_shared.turns import Abstention, Completion, Turn


@pytest.mark.parametrize(("text", "wrong"), [
    ("So 6 * 7 = 42.", []), ("So 6 * 7 = 41.", ["6*7=41"]), ("6 x 7 = 41", ["6*7=41"]), ("6 × 7 = 42", []), ("10 ÷ 4 = 2.5", []),
    ("$1,200 + $300 = $1,400", ["1200+300=1400"]), ("10 / 3 = 3.33", []), ("10 / 3 = 3.3", []), ("10 / 3 = 3.5", ["10/3=3.5"]),
    ("7 / 2 = 3", ["7/2=3"]), ("x = 4", []), ("2 + x = 4", []), ("5 = 5", []), ("1 / 0 = 7", []), ("a == 2 + 2", []),
    ("2 + 3 = 5 + 1 = 6", []), ("(2 + 3) * 4 = 21", ["(2+3)*4=21"]), ("20 - 5 = 15% of it", []), ("- 3 + 5 = 8", []), ("- 3 + 5 = 2", ["3+5=2"]),
    ("-3 + 5 = 2", []), ("x + 2 + 3 = 9", []), ("4 times 2 + 3 = 11", []), ("half of 10 + 5 = 10", []), ("2 + 4 = 5 + 1 = 6", []),
    ("12 - 4 = 8 - 3 = 5", []), ("2 * 3 = 4.25%", []), ("2 * 500 = 1 thousand", []), ("She has 3 + 4 = 8 apples", ["3+4=8"]),
    ("Wrong: 3 + 4 = 8", ["3+4=8"]), ("`3 + 4 = 8`", ["3+4=8"]), ("1. 3 + 4 = 8", []), ("n2 + 3 = 9", []), ("20% + 5 = 30", []),
    ("9 ** 99999999 = 1", []), ("1e9 * 2 = 3", []), ("First, 2 + 2 = 5\nThen 3 + 3 = 7", ["2+2=5", "3+3=7"]),
])
def test_calculations_that_do_not_hold_are_found(text: str, wrong: list[str]) -> None:
    assert wrong_sums(text) == wrong


@given(st.integers(-999, 999), st.sampled_from("+-*/"), st.integers(1, 999), st.integers(-5000, 5000))
def test_exactly_the_wrong_sums_are_wrong(a: int, sign: str, b: int, claim: int) -> None:
    value = {"+": Fraction(a + b), "-": Fraction(a - b), "*": Fraction(a * b), "/": Fraction(a, b)}[sign]
    assert bool(wrong_sums(f"so {a} {sign} {b} = {claim}")) == (value != claim)


@given(st.text(alphabet="0123456789+-*/(). =\n,$x×", max_size=2000))
def test_any_text_can_be_read_for_sums(text: str) -> None:
    for equation in wrong_sums(text):
        assert equation.count("=") == 1


def test_hostile_texts_are_read_to_their_end() -> None:
    for hostile in ("1 + " * 4000 + "= 1 ", "(" * 4000 + "1" + ")" * 4000 + " = 2", " = " * 6000, "- " * 9000 + "= 1", "9" * 9999 + " * 9 = 1"):
        assert wrong_sums(hostile) == []


def test_only_asserts_that_use_the_code_under_attack_are_tests() -> None:
    code = "def f(x):\n    return x"
    attack = "This fails:\n```python\nassert f(1) == 2\nassert False\n  assert f(\nassert g(1) == 2\nf = None\n```\n`assert f(0)`"
    assert asserts_in(attack, code) == ["assert f(1) == 2"]
    assert asserts_in("assert f(1) == 2\n" * 9, code) == ["assert f(1) == 2"] * 5
    assert asserts_in("assert f(1)", "x = 1") == []


def test_a_check_is_asked_and_answered_in_json() -> None:
    turn = python_check("def f(): pass", ["assert f() is None"])
    assert turn.is_check
    assert json.loads(turn.messages[0].content) == {}
    assert json.loads(turn.messages[1].content) == {"code": "def f(): pass", "tests": ["assert f() is None"]}
    assert ruling_of(Completion(text='{"ran": true, "passed": false, "detail": "AssertionError"}')) is not None
    for noise in ("", "true", "{}", '{"ran": "maybe"}', "[" * 9999):
        assert ruling_of(Completion(text=noise)) is None
    assert ruling_of(Abstention(cause="refused")) is None


def fight(proposals: list[str | None], attacks: list[str | None], *, checks: list[str | None] | None = None,
          judge: list[str] | None = None) -> Scripted:
    """The proposer m0, the attacker m1, the check and the judge, each saying its list in turn (the last repeats)."""
    said: dict[str, list[str | None]] = {"m0": list(proposals), "m1": list(attacks), "check/python": list(checks or [None]), "judge": list(judge or [])}

    def say(number: int, place: int, turn: Turn) -> str | None:
        queue = said[turn.member]
        return queue.pop(0) if len(queue) > 1 else queue[0]

    return Scripted(say)


def test_a_proven_attack_is_repaired_and_the_repair_must_survive_anew() -> None:
    script = fight(["6 * 7 = 41. Answer: 41", "6 * 7 = 42. Answer: 42"], ["Wrong: 6 * 7 = 41", "It is ugly.", "No mistake"])
    found = play(job_of("adversarial"), script)
    assert found.verdict is not None
    assert found.verdict.answer == "6 * 7 = 42. Answer: 42"
    assert found.verdict.notes == {"stood": True, "survived": 2, "repaired": 1, "attacks": [
        {"proven": True, "by": "arithmetic"}, {"proven": False, "by": None}, {"proven": False, "by": None}]}
    assert "This calculation is wrong: 6*7=41" in script.prompt(2)


def test_a_sum_that_the_answer_does_not_contain_proves_nothing_against_it() -> None:
    found = play(job_of("adversarial"), fight(["6 * 7 = 42"], ["Wrong: 6 * 7 = 41"]))
    assert found.verdict is not None
    assert found.verdict.notes["stood"] is True


def test_a_failing_test_is_run_and_proves() -> None:
    code = "```python\ndef add(a, b):\n    return a {} b\n```"
    failed, passed = '{"ran": true, "passed": false, "detail": "AssertionError"}', '{"ran": true, "passed": true}'
    script = fight([code.format("-"), code.format("+")], ["assert add(2, 3) == 5"], checks=[failed, passed])
    found = play(job_of("adversarial"), script)
    assert found.verdict is not None
    assert found.verdict.answer == code.format("+")
    assert (found.verdict.notes["stood"], found.verdict.notes["repaired"]) == (True, 1)
    assert "Write one line of Python that fails" in script.prompt(1)
    assert "assert add(2, 3) == 5\n\nAssertionError" in script.prompt(3)


@pytest.mark.parametrize("check", [None, "noise", '{"ran": false, "passed": false}'])
def test_what_could_not_be_run_goes_to_the_judge_or_proves_nothing(check: str | None) -> None:
    code = "```python\ndef f(x):\n    return x\n```"
    alone = play(job_of("adversarial"), fight([code], ["assert f(1) == 2"], checks=[check]))
    assert alone.verdict is not None
    assert alone.verdict.notes["stood"] is True
    judged = play(job_of("adversarial", judge="j/j", repairs=0), fight([code], ["assert f(1) == 2"], checks=[check], judge=["Verdict: yes"]))
    assert judged.verdict is not None
    assert judged.verdict.notes["attacks"] == [{"proven": True, "by": "judge"}]


def test_the_judge_must_uphold_an_attack_in_both_orders() -> None:
    for answers, proven in ((["Verdict: yes", "Verdict: yes"], True), (["Verdict: yes", "Verdict: no"], False), (["maybe", "Verdict: yes"], False)):
        script = fight(["Paris is in Italy."], ["Counter-example: Paris is in France."], judge=answers)
        found = play(job_of("adversarial", attacks=1, repairs=0, judge="j/j"), script)
        assert found.verdict is not None
        assert found.verdict.notes["stood"] is not proven
        orders = [script.prompt(2, p) for p in (0, 1)]
        assert [p.index("Objection:") < p.index("Answer:") for p in orders] == [False, True]


def test_an_answer_that_cannot_be_repaired_does_not_stand() -> None:
    found = play(job_of("adversarial", repairs=2), fight(["2 + 2 = 5"], ["Wrong: 2 + 2 = 5"]))
    assert found.verdict is not None
    assert (found.verdict.answer, found.verdict.notes["stood"], found.verdict.notes["repaired"]) == ("2 + 2 = 5", False, 2)
    silent = play(job_of("adversarial"), fight(["2 + 2 = 5", None], ["Wrong: 2 + 2 = 5"]))
    assert silent.verdict is not None
    assert silent.verdict.notes["stood"] is False


def test_an_attacker_that_says_nothing_has_not_attacked() -> None:
    found = play(job_of("adversarial"), fight(["2 + 2 = 4"], [None]))
    assert found.verdict is not None
    assert (found.verdict.notes["stood"], found.verdict.notes["attacks"]) == (False, [])
    assert len(found.rounds) == 3
    strict = play(job_of("adversarial", quorum=2), fight(["2 + 2 = 4"], [None]))
    assert strict.error is not None
    assert strict.error.type == "NoQuorum"


def test_an_attacker_is_told_what_failed_before() -> None:
    script = fight(["2 + 2 = 4"], ["It is too short.", "It is too long."])
    play(job_of("adversarial"), script)
    assert "It is too short." not in script.prompt(1)
    assert "- It is too short." in script.prompt(2)


def test_a_judge_that_is_asked_for_must_be_there() -> None:
    with pytest.raises(BadInput, match="check is 'judge', but there is none"):
        job_of("adversarial", check="judge")
