from __future__ import annotations

import json
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from symposia_shared.prompts import ChoiceForm, JsonForm, Message, Sampling, user
from symposia_shared.scripted import CONTEXT, FATAL, EngineCause, script_of, scripted_reply, words
from symposia_shared.turns import Abstention, Completion

PROMPTS = st.text(min_size=1).filter(str.strip)


def said(model: str, prompt: str = "say something", **sampling: object) -> Completion:
    reply = scripted_reply(model, user(prompt), Sampling(**sampling))
    assert isinstance(reply, Completion)
    return reply


@given(st.text())
def test_words_joined_are_the_text(text: str) -> None:
    assert "".join(words(text)) == text
    assert all(not w.isspace() for w in words(text)) or text.isspace()


def test_long_runs_of_white_space_are_cut_in_linear_time() -> None:
    assert words(" " * 1_000_000) == [" " * 1_000_000]
    assert len(words("a" + " " * 500_000 + "b" + "\n" * 500_000)) == 2


@given(PROMPTS)
def test_echo_answers_with_the_last_user_message(prompt: str) -> None:
    messages = (Message(role="system", content="be brief"), *user("earlier"), Message(role="assistant", content="yes"), *user(prompt))
    reply = scripted_reply("test/echo", messages, Sampling(max_tokens=100_000))
    assert isinstance(reply, Completion)
    assert reply.text == prompt
    assert reply.finish_reason == "stop"
    assert reply.usage.completion_tokens == len(words(prompt))


def test_say_says_its_text_colons_included() -> None:
    assert said("test/say:a: b").text == "a: b"


def test_max_tokens_cuts_with_finish_reason_length() -> None:
    reply = said("test/say:one two three", max_tokens=2)
    assert (reply.text, reply.finish_reason, reply.usage.completion_tokens) == ("one two", "length", 2)


def test_an_answer_of_exactly_max_tokens_is_not_cut() -> None:
    assert said("test/say:one two", max_tokens=2).finish_reason == "stop"


def test_a_stop_string_ends_the_answer_before_it_and_its_tokens_count() -> None:
    reply = said("test/say:one two three four", stop=("o thr", "four"))
    assert (reply.text, reply.finish_reason, reply.usage.completion_tokens) == ("one tw", "stop", 3)


def test_a_stop_string_beyond_max_tokens_is_not_met() -> None:
    assert said("test/say:one two three", max_tokens=2, stop=("three",)).finish_reason == "length"


@given(PROMPTS, st.integers(0, 2**63 - 1), st.integers(1, 300))
def test_garbage_repeats_for_its_seed_fits_and_survives_json(prompt: str, seed: int, most: int) -> None:
    reply = said("test/garbage", prompt, seed=seed, max_tokens=most)
    assert reply == said("test/garbage", prompt, seed=seed, max_tokens=most)
    assert 1 <= reply.usage.completion_tokens <= most
    assert Completion.model_validate(json.loads(reply.to_json())) == reply


def test_garbage_differs_by_seed_and_by_prompt() -> None:
    texts = {said("test/garbage", prompt, seed=seed).text for prompt in ("a", "b", "c") for seed in range(20)}
    assert len(texts) == 60


def test_garbage_has_all_kinds_of_noise() -> None:
    noise = "".join(said("test/garbage", seed=seed, max_tokens=1000).text for seed in range(30))
    assert "\x00" in noise
    assert "```" in noise
    assert "漢" in noise
    assert any(len(w.strip().strip("+-")) > 100 and w.strip("+-")[:50].isdigit() for w in noise.split())


@pytest.mark.parametrize("cause", get_args(EngineCause))
def test_failing_fails_with_the_cause_it_is_given(cause: str) -> None:
    reply = scripted_reply(f"test/failing:{cause}", user("x"), Sampling())
    assert isinstance(reply, Abstention)
    assert reply.cause == cause


@pytest.mark.parametrize("how", sorted(FATAL))
def test_what_kills_a_process_is_marked_and_does_no_harm_in_a_rehearsal(how: str) -> None:
    script = script_of(f"test/failing:{how}", user("x"), Sampling())
    assert script.fatal == how
    assert isinstance(script.reply, Abstention)


@pytest.mark.parametrize("model", ["test/failing:nonsense", "test/failing:", "test/unknown", "test/slow:x", "test/slow:", "test/say:"])
def test_a_name_that_is_none_fails_as_a_bad_prompt_that_names_the_allowed_ones(model: str) -> None:
    reply = scripted_reply(model, user("x"), Sampling())
    assert isinstance(reply, Abstention)
    assert reply.cause == "bad_prompt"
    assert "out_of_memory" in reply.message or "test/echo" in reply.message


def test_a_blank_prompt_is_a_bad_prompt_and_one_beyond_the_context_is_too_long() -> None:
    blank = scripted_reply("test/echo", (Message(role="user", content=""),), Sampling())
    long = scripted_reply("test/echo", user("w " * CONTEXT), Sampling())
    assert isinstance(blank, Abstention)
    assert isinstance(long, Abstention)
    assert (blank.cause, long.cause) == ("bad_prompt", "prompt_too_long")


def test_vectors_scores_and_choices_repeat_and_what_a_script_cannot_do_is_a_bad_prompt() -> None:
    vectors = scripted_reply("test/say:x", (*user("a b"), *user("")), Sampling(), want="embedding")
    assert isinstance(vectors, Completion)
    assert vectors.vectors is not None
    assert all(abs(sum(x * x for x in v) - 1.0) < 1e-6 for v in vectors.vectors)
    choice = scripted_reply("test/echo", user("no, never"), Sampling(form=ChoiceForm(options=("yes", "no"))))
    assert isinstance(choice, Completion)
    assert choice.text == "no"
    assert said("test/say:two words", logprobs=1).logprobs is not None
    for refused in (scripted_reply("test/echo", user("x"), Sampling(form=JsonForm())), scripted_reply("test/echo", user("x"), Sampling(), suffix="y")):
        assert isinstance(refused, Abstention)
        assert refused.cause == "bad_prompt"
    failing = scripted_reply("test/failing:timeout", user("x"), Sampling(), want="embedding")
    assert isinstance(failing, Abstention)
