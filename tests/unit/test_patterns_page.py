"""docs/PATTERNS.md against the patterns: costs, counts and refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rehearsing import ALL, COUNTS, Scripted, job_of, play
from symposia_shared.patterns import debate, patterns, scorers
from symposia_shared.turns import Turn

PAGE = (Path(__file__).parents[2] / "docs" / "PATTERNS.md").read_text()


def row_of(kind: str) -> list[str]:
    return next([c.strip() for c in line.split("|")[1:-1]] for line in PAGE.splitlines() if line.startswith(f"| [{kind}]"))


@pytest.mark.parametrize("kind", ALL)
def test_the_page_has_the_member_counts(kind: str) -> None:
    fewest, most = COUNTS[kind]
    assert row_of(kind)[1] == (f"{fewest}–{most}" if fewest < most else str(fewest))


@pytest.mark.parametrize("kind", ALL)
def test_the_page_gives_the_reason_of_every_refused_pair(kind: str) -> None:
    refused = getattr(patterns()[kind], "refused", {})
    scored = {"majority_vote": scorers.JUDGE_DECIDES, "all_agree": scorers.TESTS_DECIDE}
    reasons = dict(refused.items()) or ({"best_response": debate.NO_SCORES, **scored} if kind == "debate" else {})
    table = PAGE.partition("### Refused consensus algorithms")[2].partition("## Ensemble")[0]
    for name, why in reasons.items():
        rows = [line for line in table.splitlines() if line.startswith(f"| {kind}") and why in line]
        assert any(name in line or "all four" in line for line in rows), f"{kind} refuses {name}: {why}"


def never_agreeing(number: int, place: int, turn: Turn) -> str:
    """Other answers each time, flawed plans, everything missing, objections, and judges that decide nothing."""
    if turn.is_check:
        return "noise"
    asked = turn.messages[-1].content
    if "Reply with JSON only" in asked or "corrected JSON only" in asked:
        return "no plan"
    if "no usable result" in asked:
        return "Missing: 1, 2, 3, 4"
    return f"Because of {number}.{place}:\nassert f({number}) == 0\n```python\ndef f(x):\n    return {number * 100 + place}\n```"


def strangers(texts: list[str]) -> str:
    """No two texts are alike."""
    return json.dumps({"scorer": "s", "threshold": 0.9, "alike": [[float(a == b) for b in texts] for a in texts]})


def most_of(kind: str, **fields: Any) -> tuple[int, int]:
    """Turns and rounds of the longest course found."""
    script = Scripted(never_agreeing)
    script.alike = strangers
    found = play(job_of(kind, **fields), script)
    assert found.verdict is not None
    return sum(len(r.turns) for r in found.rounds), len(found.rounds)


@pytest.mark.parametrize(("kind", "fields", "turns", "rounds"), [
    ("pipeline", {"members": 4}, 4, 4),
    ("debate", {"members": 3, "rounds": 4, "answer_kind": "code"}, 3 * 4, 4),
    ("debate", {"members": 3, "rounds": 4, "answer_kind": "code", "judge": "j"}, 3 * 4 + 2, 5),
    ("hierarchical", {"members": 5}, 4 + 4 + 4, 6),
    ("ensemble", {"members": 7, "answer_kind": "code"}, 7, 1),
    ("ensemble", {"members": 7, "answer_kind": "text"}, 7 + 1, 2),
    ("ensemble", {"members": 7, "answer_kind": "text", "judge": "j"}, 7 + 1 + 2, 3),
    ("ensemble", {"members": 7, "answer_kind": "code", "tests": ["f(1)", "f(2)"], "judge": "j"}, 7 + 7 * 2 + 2, 3),
    ("debate", {"members": 3, "rounds": 4, "answer_kind": "text"}, 3 * 4 + 4, 4 + 4),
    ("consensus_building", {"members": 4, "rounds": 5, "answer_kind": "text"}, 4 * 5 + 5, 5 + 5),
    ("iterative_refinement", {"members": 3, "rounds": 3, "judge": "j"}, 1 + 4 * 3, 1 + 3 * 3),
    ("specialist_team", {"members": 5}, 3 + 4, 4),
    ("iterative_refinement", {"members": 3, "rounds": 3}, 2 + 3 * 3, 1 + 3 * 3),
    ("adversarial", {"attacks": 3, "repairs": 0, "judge": "j"}, 1 + 3 * (1 + 3), 1 + 3 * 3),
    ("consensus_building", {"members": 4, "rounds": 5, "answer_kind": "code"}, 4 * 5, 5),
])
def test_the_most_a_pattern_costs_is_what_the_page_says(kind: str, fields: dict[str, Any], turns: int, rounds: int) -> None:
    assert most_of(kind, **fields) == (turns, rounds)


def test_an_adversarial_play_costs_no_more_than_the_page_says_whichever_attacks_succeed() -> None:
    def costs(proves: Callable[[int], bool]) -> int:
        left = iter(range(1000))

        def say(number: int, place: int, turn: Turn) -> str:
            if turn.member == "m0":
                return "2 + 2 = 5"
            return "Wrong: 2 + 2 = 5" if proves(next(left)) else "I do not like it."

        found = play(job_of("adversarial", attacks=2, repairs=2), Scripted(say))
        return sum(len(r.turns) for r in found.rounds)

    worst = 1 + 2 + (2 + 1) * 2
    assert max(costs(lambda n, m=mask: bool(m >> n & 1)) for mask in range(64)) == worst  # type: ignore[misc]
