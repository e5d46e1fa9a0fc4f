from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from symposia_shared.errors import BadInput
from symposia_shared.prompts import Message, user
from symposia_worker.families import Renderer, family_of
from symposia_worker.families.family import FAMILIES
from tiny import tiny_tokenizer


@cache
def renderer(*, chat: bool = False, special: tuple[str, ...] = ()) -> Renderer:
    return Renderer(family_of("llama"), tiny_tokenizer(chat=chat, special=special))


def with_template(template: str) -> Renderer:
    tokenizer: Any = tiny_tokenizer()
    tokenizer.chat_template = template
    return Renderer(family_of("llama"), tokenizer)


def rendered(r: Renderer, *messages: tuple[str, str]) -> str:
    ids = r.prompt_ids([Message(role=role, content=content) for role, content in messages])  # type: ignore[arg-type]
    return str(r.tokenizer.decode(ids))


def test_no_two_families_claim_one_model_type() -> None:
    names = [name for family in FAMILIES for name in family.model_types]
    assert len(names) == len(set(names))
    assert family_of("never heard of").model_types == ()


def test_a_base_model_is_given_the_contents_as_plain_text() -> None:
    assert rendered(renderer(), ("user", "def add(a, b):\n")) == "def add(a, b):\n"
    assert rendered(renderer(), ("system", "Be brief."), ("user", "Hi")) == "Be brief.\n\nHi"
    assert not renderer().instruct


def test_a_chat_model_is_given_its_template_with_the_markers_as_single_tokens() -> None:
    r = renderer(chat=True)
    assert rendered(r, ("user", "Hi")) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    marker = r.tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert r.prompt_ids(user("Hi")).count(marker) == 2


def test_a_chat_that_ends_with_the_assistant_goes_on_where_it_ended() -> None:
    assert rendered(renderer(chat=True), ("user", "Hi"), ("assistant", "Well,")).endswith("<|im_start|>assistant\nWell,")


def test_bos_is_written_once_where_the_template_writes_it() -> None:
    tokenizer: Any = tiny_tokenizer()
    tokenizer.bos_token = "<|endoftext|>"
    tokenizer.chat_template = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"
    assert rendered(Renderer(family_of("llama"), tokenizer), ("user", "Hi")) == "<|endoftext|>Hi"


def test_a_template_that_takes_no_system_message_is_given_it_by_the_user() -> None:
    strict = with_template(
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        "[{{ m.role }}]{{ m.content }}{% endfor %}")
    assert rendered(strict, ("system", "Be brief."), ("user", "Hi")) == "[user]Be brief.\n\nHi"


def test_a_template_that_refuses_everything_is_a_bad_prompt_with_its_words() -> None:
    with pytest.raises(BadInput, match="only on Mondays"):
        with_template("{{ raise_exception('only on Mondays') }}").prompt_ids(user("Hi"))


def test_a_template_cannot_reach_python() -> None:
    with pytest.raises(BadInput):
        with_template("{{ messages.__class__.__mro__[1].__subclasses__() }}").prompt_ids(user("Hi"))


def test_a_blank_prompt_is_refused() -> None:
    with pytest.raises(BadInput, match="empty"):
        renderer().prompt_ids(user("\n "))


def test_an_eos_that_the_tokenizer_appends_is_taken_off() -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer: Any = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A <|endoftext|>", special_tokens=[("<|endoftext|>", 0)])
    assert tokenizer("Hi")["input_ids"][-1] == 0
    assert Renderer(family_of("llama"), tokenizer).prompt_ids(user("Hi"))[-1] != 0


def test_stop_tokens_are_eos_of_all_sources_and_the_turn_ends_of_chat_models() -> None:
    tokenizer: Any = tiny_tokenizer(chat=True)
    turn_end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert Renderer(family_of("llama"), tokenizer, eos=[17]).stop_ids == {0, 17, turn_end}
    assert renderer().stop_ids == {0}


def test_text_is_decoded_without_clean_up_of_spaces_and_without_special_tokens() -> None:
    r = renderer(chat=True)
    written = "a , b . c 's n't"
    ids = r.tokenizer(written)["input_ids"]
    assert r.text([*ids, r.tokenizer.convert_tokens_to_ids("<|im_end|>")]) == written


@pytest.mark.parametrize(("text", "reasoning", "answer"), [
    ("<think>\n6*7\n</think>\n\n42", "6*7", "42"),
    ("6*7</think>42", "6*7", "42"),  # the template has written the opening mark
    ("<think>cut off", "cut off", ""),
    ("plain", None, "plain"),
])
def test_reasoning_is_split_from_the_answer(text: str, reasoning: str | None, answer: str) -> None:
    assert renderer(chat=True, special=("<think>", "</think>")).split_reasoning(text) == (reasoning, answer)


def test_marks_that_a_model_without_reasoning_writes_are_its_answer() -> None:
    assert renderer().split_reasoning("<think>x</think>y") == (None, "<think>x</think>y")


def test_a_raw_prompt_is_put_as_it_stands_also_to_a_chat_model() -> None:
    r = renderer(chat=True)
    ids = r.prompt_ids([Message(role="user", content="def f("), Message(role="user", content="x):")], raw=True)
    assert r.tokenizer.decode(ids) == "def f(x):"


def test_a_raw_prompt_has_the_bos_its_tokenizer_adds() -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer: Any = tiny_tokenizer(chat=True)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)])
    assert Renderer(family_of("llama"), tokenizer).prompt_ids(user("Hi"), raw=True)[0] == 0


@pytest.mark.parametrize(("marks", "prompt", "ends"), [
    (("<|mask:0|>", "<|mask:1|>", "<|endofmask|>"), "a(<|mask:0|>)b<|mask:1|><|mask:0|>", {"<|endofmask|>"}),
    (("<mask_1>", "<sep>", "<eom>", "<fim_prefix>", "<fim_suffix>", "<fim_middle>"), "a(<mask_1>)b<|endoftext|><sep><mask_1>", {"<eom>"}),
    (("<fim_prefix>", "<fim_suffix>", "<fim_middle>"), "<fim_prefix>a(<fim_suffix>)b<fim_middle>", {"<fim_prefix>", "<fim_suffix>", "<fim_middle>"}),
    (("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|fim_pad|>"), "<|fim_prefix|>a(<|fim_suffix|>)b<|fim_middle|>",
     {"<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|fim_pad|>"}),
])
def test_a_hole_is_put_in_the_form_of_the_tokenizers_own_marks(marks: tuple[str, ...], prompt: str, ends: set[str]) -> None:
    r = renderer(special=marks)
    ids = r.prompt_ids(user("a("), suffix=")b")
    assert r.tokenizer.decode(ids) == prompt
    assert set(r.tokenizer.convert_ids_to_tokens(sorted(r.stop_ids))) == {"<|endoftext|>", *ends}


def test_a_hole_at_the_beginning_may_have_an_empty_prefix() -> None:
    r = renderer(special=("<fim_prefix>", "<fim_suffix>", "<fim_middle>"))
    assert r.tokenizer.decode(r.prompt_ids([Message(role="user", content="")], suffix="x")) == "<fim_prefix><fim_suffix>x<fim_middle>"


def test_a_hole_is_refused_where_the_tokenizer_has_no_marks_for_it() -> None:
    with pytest.raises(BadInput, match="cannot infill"):
        renderer(special=("<fim_prefix>",)).prompt_ids(user("a("), suffix=")b")
