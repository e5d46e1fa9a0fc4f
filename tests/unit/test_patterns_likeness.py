"""Free texts inside plays are compared by a recorded turn, and by their words where nobody answers it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from rehearsing import Scripted, by_member, job_of, play
from symposia.cli.replay import replayed
from symposia_shared.errors import BadInput, PlayDiverged
from symposia_shared.patterns.likeness import likeness_check, likeness_in
from symposia_shared.rehearsal import ScriptLine, from_lines, rehearse
from symposia_shared.results import Result
from symposia_shared.turns import LIKENESS, Abstention, Completion

WET, RAINY, OSLO = "Bergen has very wet weather.", "It rains a lot in Bergen.", "Oslo is cold in winter."


def by_town(texts: list[str]) -> str:
    """What a model would say: texts about one town are alike."""
    alike = [[1.0 if ("Oslo" in a) == ("Oslo" in b) else 0.1 for b in texts] for a in texts]
    return json.dumps({"scorer": "towns", "threshold": 0.9, "alike": alike})


def towns(kind: str, alike: Any = by_town, **fields: Any) -> tuple[Result, Scripted]:
    job = job_of(kind, 3, answer_kind="text", **fields)
    script = by_member(m0=WET, m1=OSLO, m2=RAINY)
    script.alike = alike
    return play(job, script).result("a", job), script


@pytest.mark.parametrize("kind", ["ensemble", "debate", "consensus_building"])
def test_what_the_check_finds_alike_votes_together_and_its_scorer_is_named(kind: str) -> None:
    found, script = towns(kind)
    assert found.verdict is not None
    assert found.verdict.answer in (WET, RAINY)
    assert found.verdict.agreement == pytest.approx(2 / 3)
    assert found.verdict.rule == "majority_vote (text by towns >= 0.9)"
    assert [t.model for _, _, t in script.asked].count(LIKENESS) == (1 if kind == "ensemble" else 3)


@pytest.mark.parametrize("kind", ["ensemble", "debate", "consensus_building"])
def test_the_transcript_replays_to_the_same_verdict_and_an_altered_reply_of_the_check_alters_it(kind: str) -> None:
    found, _ = towns(kind)
    again = Result.from_json(found.model_dump_json())
    assert replayed(again) == found.verdict
    raw = json.loads(found.model_dump_json())
    last = [item for record in raw["rounds"] for item in record["turns"] if item["turn"]["model"] == LIKENESS][-1]
    told = json.loads(last["reply"]["text"])
    last["reply"]["text"] = json.dumps({**told, "alike": [[float(i == j) for j in range(3)] for i in range(3)]})
    assert replayed(Result.from_json(json.dumps(raw))).agreement == pytest.approx(1 / 3)


@pytest.mark.parametrize("said", [
    None, "", "noise", "[]", '{"scorer": "s", "threshold": 0.5, "alike": []}', '{"scorer": "s", "threshold": 0.5, "alike": [[1, 1, 1]]}',
    '{"scorer": "s", "threshold": 0.5, "alike": [[1, NaN, 1], [1, 1, 1], [1, 1, 1]]}', '{"scorer": "s", "threshold": 1e999, "alike": [[1]]}',
])
def test_where_the_check_says_nothing_of_use_texts_are_compared_by_their_words_and_the_rule_says_so(said: str | None) -> None:
    found, _ = towns("ensemble", alike=lambda texts: said)
    assert found.verdict is not None
    assert found.verdict.rule == "majority_vote (text by token Jaccard, as check/likeness did not answer >= 0.6)"
    assert found.verdict.agreement == pytest.approx(1 / 3)


@pytest.mark.parametrize(("kind", "fields", "texts"), [
    ("ensemble", {"answer_kind": "text"}, (WET, WET, WET)),
    ("ensemble", {"answer_kind": "text"}, (WET, None, None)),
    ("ensemble", {"answer_kind": "number"}, ("1", "2", "3")),
    ("debate", {"answer_kind": "code"}, ("x = 1", "x = 2", "x = 3")),
])
def test_the_check_is_asked_only_where_different_texts_were_spoken(kind: str, fields: dict[str, Any], texts: tuple[str | None, ...]) -> None:
    script = by_member(m0=texts[0], m1=texts[1], m2=texts[2])
    assert play(job_of(kind, 3, **fields), script).verdict is not None
    assert LIKENESS not in {t.model for _, _, t in script.asked}


def test_a_debate_whose_members_say_the_same_in_other_words_ends_early() -> None:
    job = job_of("debate", 2, rounds=5, answer_kind="text")
    script = by_member(m0=WET, m1=RAINY)
    script.alike = by_town
    found = play(job, script)
    assert [len(r.turns) for r in found.rounds] == [2, 1]
    assert found.verdict is not None
    assert found.verdict.agreed


def test_a_rehearsal_gives_no_members_line_to_the_check_and_a_line_that_places_it_is_its_reply() -> None:
    job = job_of("ensemble", 3, answer_kind="text")
    lines = [ScriptLine(text=t) for t in (WET, OSLO, RAINY, "left over")]
    found = rehearse(job, from_lines(lines))
    assert isinstance(found.rounds[1].turns[0].reply, Abstention)
    assert found.verdict is not None
    assert found.verdict.agreement == pytest.approx(1 / 3)
    placed = ScriptLine(round=1, turn=0, text=by_town(sorted([WET, OSLO, RAINY])))
    told = rehearse(job, from_lines([*lines, placed])).verdict
    assert told is not None
    assert told.agreement == pytest.approx(2 / 3)


def test_a_transcript_of_a_version_without_the_check_is_told_from_one_that_is_cut_off() -> None:
    found, _ = towns("ensemble")
    cut = found.model_copy(update={"rounds": found.rounds[:1]})
    with pytest.raises(BadInput, match="the play goes on"):
        replayed(cut)
    with pytest.raises(PlayDiverged, match="version 1 of this ensemble"):
        replayed(cut.model_copy(update={"version": 1}))


def test_a_long_text_is_shown_to_the_check_without_its_middle() -> None:
    asked = json.loads(likeness_check(["a" * 100_000, "b"]).messages[-1].content)["texts"]
    assert [len(t) <= 4000 for t in asked] == [True, True]
    assert likeness_in(Completion(text=by_town(asked)), ["a" * 100_000, "b"]) is not None
