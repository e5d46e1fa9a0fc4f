"""What a person sees of a reply besides its text, and what a job of one turn keeps of it."""

from __future__ import annotations

import pytest
from rich.console import Console

from symposia.cli import show
from symposia_shared.errors import BadInput
from symposia_shared.jobs import SINGLE_TURN, Embedding, Inference, needs_of
from symposia_shared.patterns import parse_job
from symposia_shared.prompts import ChoiceForm, RegexForm, Sampling
from symposia_shared.rehearsal import rehearse
from symposia_shared.results import Result, Score, bill_of
from symposia_shared.turns import Abstention, Completion, Timing, TokenLogprob


def shown(monkeypatch: pytest.MonkeyPatch, found: Result) -> str:
    console = Console(record=True, width=100, file=open("/dev/null", "w"))  # noqa: SIM115 - a console's own
    monkeypatch.setattr(show, "out", console)
    show.result(found)
    return console.export_text()


def ended(reply: Completion, **job: object) -> Result:
    asked = parse_job({"model": "m", "prompt": "?", **job})
    return rehearse(asked, lambda number, place, turn: reply).result("j", asked)


def test_reasoning_options_and_logprobs_are_shown_beside_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = (TokenLogprob(token="yes", logprob=-0.25, top=(("yes", -0.25), ("no", -1.5))),)
    text = shown(monkeypatch, ended(Completion(text="yes", reasoning="I \x1b[31mthink", options={"no": 0.2, "yes": 0.8}, logprobs=tokens, logprob_mean=-0.25)))
    assert "reasoning: I �[31mthink" in text
    assert text.index("80.0%  yes") < text.index("20.0%  no")
    assert "-0.250  'yes'   ['yes' -0.250  'no' -1.500]" in text
    assert "mean logprob -0.250" in text


def test_vectors_are_counted_not_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Embedding(model="m", texts=("a", "b"))
    found = rehearse(asked, lambda number, place, turn: Completion(text="", vectors=((1.0, 0.0), (0.0, 1.0)))).result("j", asked)
    text = shown(monkeypatch, found)
    assert "2 vectors of 2 dimensions" in text
    assert "no consensus" not in text


def test_the_completion_of_a_job_of_one_turn_is_at_hand_and_survives_json() -> None:
    found = ended(Completion(text="x", reasoning="r", options={"x": 1.0}))
    again = Result.from_json(found.model_dump_json())
    assert again.completion == found.completion
    assert again.completion is not None
    assert again.completion.reasoning == "r"


def test_a_job_of_one_turn_survives_its_own_json_and_is_read_by_kind() -> None:
    for job in (Embedding(model="m", texts=("a", "b")), Inference(model="m", prompt="x", suffix="y", raw=True, want="score")):
        assert parse_job(job.model_dump(mode="json", exclude_defaults=True)) == job
    assert set(SINGLE_TURN) == {"inference", "embedding"}
    with pytest.raises(BadInput, match="at most 2048"):
        Embedding(model="m", texts=("x",) * 2049)


def test_what_a_turn_needs_of_its_checkpoint() -> None:
    def needs(**fields: object) -> tuple[str, ...]:
        return needs_of(Inference(model="m", prompt="x", **fields).turn)

    assert needs() == ("generate|seq2seq",)
    assert needs(suffix="y", sampling=Sampling(form=RegexForm(pattern="a"))) == ("infill", "regex")
    assert needs(sampling=Sampling(form=ChoiceForm(options=("a",)))) == ("generate|seq2seq", "choice")
    assert needs(want="score") == ("score",)
    assert needs_of(Embedding(model="m", texts=("x",)).turn) == ("embed",)


def test_a_score_is_refused_of_a_reply_that_has_none() -> None:
    with pytest.raises(BadInput, match="no log-probabilities"):
        Score.of(Completion(text="x"))


def test_an_embedding_that_was_stopped_may_have_used_no_new_tokens() -> None:
    def billed(job: Embedding | Inference) -> int:
        stopped = Abstention(cause="cancelled", timing=Timing(claimed_at=1.0))
        return bill_of(rehearse(job, lambda number, place, turn: stopped).rounds).uncounted_tokens_at_most

    assert billed(Embedding(model="m", texts=("x",))) == 0
    assert billed(Inference(model="m", prompt="x")) == 256


def test_a_single_answer_is_shown_once_with_the_engine_that_made_it(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(monkeypatch, ended(Completion(text="forty-two", engine="openvino fast")))
    assert text.count("forty-two") == 1
    assert "openvino fast" in text
    assert "verdict" not in text
