"""``symposia vote`` and ``symposia weights fit`` over files of recorded answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from symposia.cli.vote import vote, weights_fit
from symposia_shared import sandbox
from symposia_shared.consensus import Weights
from symposia_shared.errors import BadInput

Write = Callable[..., Path]


def row(name: str, *texts: str | None, **more: Any) -> dict[str, Any]:
    """A line with one answer per text, of models a, b, c..."""
    return {"id": name, "answers": [{"model": "abcdef"[i], "text": t} for i, t in enumerate(texts)], **more}


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes lines, given as objects or as raw text, to a file."""
    def lines(*rows: dict[str, Any] | str, name: str = "answers.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows), encoding="utf-8")
        return path
    return lines


def invoke(command: Callable[..., None], *arguments: str | Path, given: str | None = None) -> Result:
    app = typer.Typer()
    app.command()(command)
    return CliRunner().invoke(app, [str(a) for a in arguments], input=given)


def decided(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_each_line_is_answered_in_order_with_its_votes(write: Write) -> None:
    file = write(row("q1", "The answer is 42.", "#### 42", "7", "no idea"), row("q2", "(A)", "The answer is (B).", "B"))
    result = invoke(vote, file)
    assert result.exit_code == 0
    assert decided(result) == [
        {"id": "q1", "answer": "42", "agreement": pytest.approx(2 / 3), "n": 3, "votes": [
            {"model": "a", "extracted": "42"}, {"model": "b", "extracted": "42"}, {"model": "c", "extracted": "7"},
            {"model": "d", "extracted": None}]},
        {"id": "q2", "answer": "B", "agreement": pytest.approx(2 / 3), "n": 3, "votes": [
            {"model": "a", "extracted": "A"}, {"model": "b", "extracted": "B"}, {"model": "c", "extracted": "B"}]},
    ]


def test_standard_input_is_read_and_keys_it_does_not_know_are_left_aside() -> None:
    result = invoke(vote, "-", given=json.dumps(row("q", "5", "5", licence="MIT", options=["x"])) + "\n")
    assert decided(result)[0]["answer"] == "5"


def test_a_bad_line_is_reported_with_its_number_and_does_not_stop_the_others(write: Write) -> None:
    file = write(row("good", "5", "5"), "{not json", '{"id": "x"}', '["list"]', row("kind", "5", kind="sonnet"), '{"id": "n", "answers": NaN}',
                 json.dumps({"id": "t", "answers": [{"model": "a", "text": 5}]}), "", row("last", "6", "6"))
    result = invoke(vote, file)
    assert result.exit_code == 2
    assert [line["id"] for line in decided(result)] == ["good", "last"]
    assert [line.split(":")[0] for line in result.stderr.splitlines()] == ["line 2", "line 3", "line 4", "line 5", "line 6", "line 7"]
    assert "answers is missing" in result.stderr
    assert "Write one of auto, number" in result.stderr


def test_a_kind_asked_for_is_used_and_else_the_lines_own(write: Write) -> None:
    file = write(row("q", "1.0", "1", kind="python_literal"), row("open", "1.0", kind="open"))
    assert [line["answer"] for line in decided(invoke(vote, file, "--kind", "number"))] == ["1", "1"]
    assert [v["extracted"] for v in decided(invoke(vote, file))[0]["votes"]] == ["1.0", "1"]


def test_an_empty_set_and_an_abstention_have_no_answer(write: Write) -> None:
    result = invoke(vote, write(row("none"), row("away", None, None)), "--consensus", "all_agree")
    assert [(line["answer"], line["agreement"], line["n"]) for line in decided(result)] == [(None, None, 0)] * 2


def test_halves_of_surrogate_pairs_do_not_stop_it(write: Write) -> None:
    result = invoke(vote, write('{"id": "s", "answers": [{"model": "a", "text": "\\ud83d"}]}'), "--kind", "text")
    assert (result.exit_code, decided(result)[0]["answer"]) == (0, "?")


def test_fitted_weights_let_the_reliable_model_win(write: Write, tmp_path: Path) -> None:
    # Given a model that is right where two others are wrong together
    labelled = write(*(row(f"q{i}", str(i), str(i + 1 if i % 3 else i), str(i + 1 if i % 2 else i), gold=i, kind="number") for i in range(30)))
    weights = tmp_path / "weights.json"
    # When weights are fitted and a new question divides them
    assert invoke(weights_fit, labelled, "-o", weights).exit_code == 0
    file = write(row("new", "1", "2", "2"), name="new.jsonl")
    # Then it wins by weight, and would not by count
    assert decided(invoke(vote, file, "--consensus", "weighted_vote", "--weights", weights))[0]["answer"] == "1"
    assert decided(invoke(vote, file))[0]["answer"] == "2"
    fitted = Weights.from_json(weights.read_bytes())
    assert (fitted.models["a"].right, fitted.models["a"].n) == (30, 30)


def test_a_text_without_an_answer_does_not_count_against_its_model(write: Write, tmp_path: Path) -> None:
    labelled = write(row("q", "5", "no idea", gold="5", kind="number"))
    invoke(weights_fit, labelled, "-o", tmp_path / "w.json")
    assert set(Weights.from_json((tmp_path / "w.json").read_bytes()).models) == {"a"}


def test_a_line_without_gold_is_reported_and_the_rest_is_fitted(write: Write, tmp_path: Path) -> None:
    result = invoke(weights_fit, write(row("q", "5"), row("r", "5", gold="5")), "-o", tmp_path / "w.json")
    assert result.exit_code == 2
    assert 'line 1: there is no "gold" answer.' in result.stderr
    assert (tmp_path / "w.json").exists()


def test_a_file_that_is_not_there_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="No such file"):
        vote(str(tmp_path / "none.jsonl"))
    with pytest.raises(BadInput, match="weights fit"):
        vote("-", weights=tmp_path / "none.json")


@pytest.mark.skipif(sandbox.lacking() is not None, reason=f"untrusted code is not run here: {sandbox.lacking()}")
def test_programs_are_compared_by_what_they_do_on_the_probe_calls(write: Write) -> None:
    file = write(row("q", "    return x * 2\n", "    return x + x\n", "    return x ** 2\n", kind="code",
                     question="def double(x):\n", probe_calls=["double(3)", "double(0)"]))
    line = decided(invoke(vote, file))[0]
    assert line["agreement"] == pytest.approx(2 / 3)
    assert line["answer"] in ("    return x * 2\n", "    return x + x\n")


def test_a_gold_answer_counts_as_given_where_the_model_put_quotation_marks_around_it(write: Write, tmp_path: Path) -> None:
    invoke(weights_fit, write(row("q", 'Answer: "9"', gold="9", kind="latex")), "-o", tmp_path / "w.json")
    assert Weights.from_json((tmp_path / "w.json").read_bytes()).models["a"].right == 1


def test_a_byte_order_mark_does_not_stop_it(tmp_path: Path) -> None:
    path = tmp_path / "bom.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(row("q", "5", "5")).encode() + b"\r\n")
    assert decided(invoke(vote, path))[0]["answer"] == "5"


def test_an_id_that_comes_again_and_an_empty_file_are_remarked_on(write: Write) -> None:
    twice = invoke(vote, write(row("q", "5"), row("r", "5"), row("q", "6")))
    assert (twice.exit_code, len(decided(twice))) == (0, 3)
    assert twice.stderr == "line 3: the id 'q' stands in line 1, too; both are used.\n"
    empty = invoke(vote, write("", "  "))
    assert (empty.exit_code, empty.stdout, empty.stderr) == (0, "", "there are no lines to read.\n")


def test_a_json_array_over_several_lines_is_one_error_and_not_one_per_line(write: Write) -> None:
    with pytest.raises(BadInput, match="one JSON array"):
        vote(str(write(json.dumps([row("q", "5")], indent=1))))


@pytest.mark.parametrize(("field", "value", "said"), [
    ("id", None, "AnswerSet.id: 'None' is neither text nor a whole number."), ("id", True, "AnswerSet.id: 'True' is neither"),
    ("id", 1.5, "AnswerSet.id: '1.5' is neither"), ("gold", [1], "AnswerSet.gold: '[1]' is neither text nor a number."),
])
def test_an_id_or_a_gold_answer_of_another_type_is_named_plainly(write: Write, field: str, value: Any, said: str) -> None:
    result = invoke(vote, write({**row("q", "5"), field: value}))
    assert result.exit_code == 2
    assert f"line 1: {said}" in result.stderr


@pytest.mark.parametrize("broken", ["nonsense", "[]", '{"models": {"a": {"right": 5, "n": 3}}}', '{"models": {"a": 0.5}}'])
def test_a_file_that_holds_no_weights_is_named(write: Write, broken: str) -> None:
    with pytest.raises(BadInput, match=r"w\.json holds no weights"):
        vote(str(write(row("q", "5"))), weights=write(broken, name="w.json"))


def test_a_score_that_is_no_finite_number_is_reported(write: Write) -> None:
    answers = '[{"model": "a", "text": "5", "score": %s}, {"model": "b", "text": "6", "score": 1}]'
    result = invoke(vote, write(*(f'{{"id": {n}, "answers": {answers % score}}}' for n, score in enumerate(("NaN", "1e999", "-Infinity")))))
    assert result.exit_code == 2
    assert [line.split(":")[0] for line in result.stderr.splitlines()] == ["line 1", "line 2", "line 3"]


def test_a_megabyte_of_text_is_read_to_its_end(write: Write) -> None:
    assert decided(invoke(vote, write(row("big", "x " * 500_000 + "The answer is 5."))))[0]["answer"] == "5"
