from __future__ import annotations

import json
import math
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asking import Asked, one_by_one, plain
from symposia_shared.errors import BadInput, PromptTooLong
from symposia_shared.prompts import ChoiceForm, JsonForm, Message, RegexForm
from symposia_worker.engines import admission
from symposia_worker.engines import batch as batch_module
from symposia_worker.engines import grammar as grammar_module
from symposia_worker.engines.forward import Forward
from symposia_worker.engines.grammar import Limits, Vocabulary, compile_form
from symposia_worker.engines.protocol import Delta
from tiny import ARCHITECTURES, tiny_checkpoint, tiny_tokenizer

PERSON = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 6}, "age": {"type": "integer", "minimum": 0, "maximum": 120}},
          "required": ["name", "age"], "additionalProperties": False}
CHAT = (Message(role="system", content="Be brief."), Message(role="user", content="Is it good?"))


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("base"), "qwen2")


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("chat"), "llama", chat=True)


def teacher_forced(folder: Path, ids: list[int]) -> list[float]:
    """The log-probability of each of ``ids`` but the first, by one plain forward."""
    model, _ = plain(folder)
    with torch.no_grad():
        logs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return [float(logs[n - 1, ids[n]]) for n in range(1, len(ids))]


# --- the gate ---


@pytest.mark.parametrize(("schema", "field", "says"), [
    ({"type": "foo"}, "form.definition", "foo"),
    ({"not": {"type": "string"}}, "form.definition", "not"),
    ({"if": {"type": "string"}, "then": {"minLength": 3}}, "form.definition", "if"),
    ({"type": "array", "uniqueItems": True}, "form.definition", "uniqueItems"),
    ({"$ref": "https://example.org/schema"}, "form.definition", "not fetch"),
    ({"$ref": "#"}, "form.definition", "refused"),
    ({"type": "integer", "minimum": 5, "maximum": 3}, "form.definition", "minimum"),
    ({"type": "string", "maxLength": 10**9}, "form.definition.maxLength", "the most"),
    ({"type": "string", "pattern": "(?=a)b"}, "form.definition", "look-ahead"),
    ({"x-guidance": {"lenient": True}, "not": {}}, "form.definition", "not"),
    ({"enum": [f"value {n}" for n in range(5000)]}, "form.definition", "bytes"),
    ({"type": "object", "properties": {f"k{n}": {"type": "string"} for n in range(1000)}}, "form.definition", "items"),
])
def test_a_schema_that_is_wrong_or_too_costly_is_refused_with_the_field_named(schema: dict[str, Any], field: str, says: str) -> None:
    with pytest.raises(BadInput, match=re.escape(says)) as refused:
        compile_form(JsonForm(definition=schema))
    assert refused.value.field == field


def test_a_schema_deeper_than_pythons_stack_is_refused_and_not_walked() -> None:
    schema: dict[str, Any] = {}
    for _ in range(5000):
        schema = {"items": schema}
    with pytest.raises(BadInput, match="deep"):
        compile_form(JsonForm.model_construct(definition=schema))


@pytest.mark.parametrize("pattern", ["(?=a)b", r"(a)\1", "(a", "[a&&b]", "a{1000000}"])
def test_a_pattern_that_cannot_be_enforced_is_refused(pattern: str) -> None:
    with pytest.raises(BadInput) as refused:
        compile_form(RegexForm(pattern=pattern))
    assert refused.value.field == "form.pattern"


def test_an_engine_with_a_slower_library_can_give_smaller_limits() -> None:
    form = JsonForm(definition={"type": "string", "maxLength": 200})
    compile_form(form)
    with pytest.raises(BadInput, match="maxLength is 200, and 100"):
        compile_form(form, Limits(count=100))


#: the grammar writes no DEL in a string, which JSON allows
_text = st.text(st.characters(exclude_characters="\x7f", exclude_categories=("Cs",)), max_size=12)


@settings(max_examples=30)
@given(value=st.recursive(st.none() | st.booleans() | st.integers() | _text, lambda inner: st.lists(inner) | st.dictionaries(_text, inner), max_leaves=8))
def test_a_whole_text_is_accepted_just_if_it_has_the_form(value: object) -> None:
    grammar = compile_form(JsonForm())
    assert grammar.accepts(json.dumps(value, ensure_ascii=False)) == isinstance(value, dict)
    assert not grammar.accepts(json.dumps({"a": value})[:-1])


def test_a_recursive_schema_is_enforced_to_its_depth() -> None:
    tree = {"$defs": {"tree": {"type": "object", "properties": {"of": {"type": "array", "items": {"$ref": "#/$defs/tree"}}}, "required": ["of"],
                               "additionalProperties": False}}, "$ref": "#/$defs/tree"}
    grammar = compile_form(JsonForm(definition=tree))
    assert grammar.accepts('{"of": [{"of": []}, {"of": [{"of": []}]}]}')
    assert not grammar.accepts('{"of": [{"of": []}, {}]}')


def test_forms_are_enforced_without_torch_and_for_any_fast_tokenizer() -> None:
    tokenizer = tiny_tokenizer()
    walk = compile_form(RegexForm(pattern="[0-9]{3}")).start(Vocabulary(tokenizer, size=len(tokenizer), stop_ids=frozenset({0})))
    for _ in range(3):
        assert not walk.ended
        allowed = [n for n in range(len(tokenizer)) if walk.mask()[n // 8] >> (n % 8) & 1]
        assert {tokenizer.decode([n]).isdigit() for n in allowed} == {True}
        walk.take(next(n for n in allowed if len(tokenizer.decode([n])) == 1))
    assert walk.ended
    assert walk.whole
    assert "torch" not in vars(grammar_module)


# --- typed output ---


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_answers_of_every_architecture_have_their_schema(tmp_path: Path, architecture: str) -> None:
    asked = Asked(tiny_checkpoint(tmp_path / "m", architecture))
    asked.ask("a", "Who?", form=JsonForm(definition=PERSON), max_tokens=200)
    asked.ask("b", "Who?", form=JsonForm(definition=PERSON), max_tokens=200, temperature=1.5, seed=5)
    asked.finish()
    for name in "ab":
        got = asked.completion(name)
        person = json.loads(got.text)
        assert got.finish_reason == "stop"
        assert set(person) == {"name", "age"}
        assert len(person["name"]) <= 6
        assert 0 <= person["age"] <= 120


def test_rows_with_and_without_a_form_share_a_batch_and_do_not_meet(base: Path) -> None:
    asked = Asked(base, max_rows=8)
    asked.ask("free", "The quick brown fox", max_tokens=30)
    asked.ask("date", "When?", form=RegexForm(pattern=r"20[0-9]{2}-(0[1-9]|1[0-2])"), max_tokens=30)
    asked.step(3)
    asked.ask("json", "Who?", form=JsonForm(definition=PERSON), max_tokens=200, temperature=0.8, seed=1, repetition_penalty=1.2)
    asked.ask("drawn", "x", max_tokens=20, temperature=1.0, seed=3)
    asked.finish()
    assert asked.completion("free").text == one_by_one(base, "The quick brown fox", 30)[0]
    assert re.fullmatch(r"20[0-9]{2}-(0[1-9]|1[0-2])", asked.completion("date").text)
    assert set(json.loads(asked.completion("json").text)) == {"name", "age"}


def test_an_answer_cut_before_it_has_its_form_ends_by_length(base: Path) -> None:
    asked = Asked(base)
    asked.ask("a", "Who?", form=JsonForm(definition=PERSON), max_tokens=4)
    asked.finish()
    assert asked.completion("a").finish_reason == "length"
    with pytest.raises(ValueError):
        json.loads(asked.completion("a").text)


def test_a_bad_form_is_refused_before_any_decode(base: Path) -> None:
    asked = Asked(base)
    before = asked.engine.forward_passes
    with pytest.raises(BadInput):
        asked.ask("a", "Who?", form=JsonForm(definition={"type": "foo"}))
    with pytest.raises(BadInput, match="stop strings"):
        asked.ask("a", "Who?", form=JsonForm(), stop=("x",))
    assert not asked.engine.busy
    assert asked.engine.forward_passes == before


def test_a_form_that_becomes_too_costly_fails_its_own_turn_only(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "compile_form", partial(compile_form, limits=Limits(lexer_states=40)))
    asked = Asked(base, max_rows=8)
    asked.ask("costly", "x", form=RegexForm(pattern="([a-z]{1,9} ){20}"), max_tokens=200, temperature=2.0, seed=1)
    asked.ask("other", "x", max_tokens=200)
    asked.finish()
    assert asked.failure("costly").cause == "bad_prompt"
    assert "costly" in asked.failure("costly").message
    assert asked.completion("other").text == one_by_one(base, "x", 200)[0]


def test_an_answer_that_lost_its_form_on_the_way_is_a_failure_and_no_answer(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked(base)
    asked.ask("a", "x", form=RegexForm(pattern="[0-9]{2,4}"), max_tokens=9)
    monkeypatch.setattr(grammar_module.Grammar, "accepts", lambda self, text: False)
    asked.finish()
    assert asked.failure("a").cause == "bug"
    assert "regex form" in asked.failure("a").message


# --- log-probabilities ---


def test_each_tokens_log_probability_is_that_of_a_plain_forward_with_the_likeliest_beside_it(base: Path) -> None:
    asked = Asked(base)
    asked.ask("a", "def add(a", max_tokens=12, temperature=1.2, seed=4, logprobs=3)
    asked.ask("b", "def add(a", max_tokens=12, logprobs=0, repetition_penalty=1.3)
    asked.ask("c", "def add(a", max_tokens=12)
    asked.step()
    sequences = {s.id: s for s in asked.batch}
    asked.finish()
    for name in "ab":
        got, s = asked.completion(name), sequences[name]
        assert got.logprobs is not None
        expected = teacher_forced(base, s.ids)[s.prompt_tokens - 1 :]
        assert [t.logprob for t in got.logprobs] == pytest.approx(expected, abs=1e-4)
        assert len(got.logprobs) == got.usage.completion_tokens
        assert got.logprob_mean == pytest.approx(sum(expected) / len(expected), abs=1e-4)
    first = asked.completion("a").logprobs
    assert first is not None
    for token in first:
        assert len(token.top) == 3
        assert [p for _, p in token.top] == sorted((p for _, p in token.top), reverse=True)
        assert token.logprob < token.top[-1][1] or (token.token, token.logprob) in token.top
    assert {t.top for t in asked.completion("b").logprobs or ()} == {()}
    assert asked.completion("c").logprobs is None


def test_the_tokens_of_an_answer_read_as_its_text(base: Path) -> None:
    asked = Asked(base)
    asked.ask("a", "The quick brown", max_tokens=20, logprobs=0, form=RegexForm(pattern="( [a-z]{1,9}){4}"))
    asked.finish()
    assert "".join(t.token for t in asked.completion("a").logprobs or ()) == asked.completion("a").text


# --- scores ---


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("chunk", [7, 512])
def test_a_scored_text_has_the_log_probabilities_of_a_plain_forward(tmp_path: Path, architecture: str, chunk: int) -> None:
    folder = tiny_checkpoint(tmp_path / "m", architecture)
    asked = Asked(folder, chunk=chunk)
    before, text = "The quick brown fox ", "jumps over the lazy dog, and the majority decides. " * 2
    asked.ask("s", (Message(role="user", content=before), Message(role="user", content=text)), want="score", raw=True, logprobs=2)
    asked.ask("t", "What is the capital", max_tokens=9)
    asked.finish()
    _, tokenizer = plain(folder)
    ids = tokenizer(before + text)["input_ids"]
    begin = next(n for n, (a, b) in enumerate(zip(ids, [*tokenizer(before)["input_ids"], -1], strict=False)) if a != b)
    got = asked.completion("s")
    assert got.text == text
    assert [t.logprob for t in got.logprobs or ()] == pytest.approx(teacher_forced(folder, ids)[begin - 1 :], abs=1e-3)
    assert all(len(t.top) == 2 for t in got.logprobs or ())
    assert got.usage.prompt_tokens + got.usage.completion_tokens == len(ids)
    assert asked.completion("t").text == one_by_one(folder, "What is the capital", 9)[0]


def test_a_chats_score_is_of_the_assistants_text_behind_the_template(chat: Path) -> None:
    asked = Asked(chat)
    asked.ask("s", (*CHAT, Message(role="assistant", content="Yes, it is.")), want="score")
    asked.finish()
    _, tokenizer = plain(chat)
    opening = tokenizer("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nIs it good?<|im_end|>\n<|im_start|>assistant\n")["input_ids"]
    text = tokenizer("Yes, it is.")["input_ids"]
    got = asked.completion("s")
    assert (got.usage.prompt_tokens, got.usage.completion_tokens) == (len(opening), len(text))
    expected = teacher_forced(chat, [*opening, *text])[-len(text) :]
    assert got.logprob_mean == pytest.approx(sum(expected) / len(expected), abs=1e-4)
    assert "".join(t.token for t in got.logprobs or ()) == "Yes, it is."


def test_a_text_alone_is_scored_from_its_second_token_on(base: Path) -> None:
    asked = Asked(base)
    asked.ask("s", "What is the capital of France?", want="score")
    asked.finish()
    _, tokenizer = plain(base)
    ids = tokenizer("What is the capital of France?")["input_ids"]
    assert [t.logprob for t in asked.completion("s").logprobs or ()] == pytest.approx(teacher_forced(base, ids), abs=1e-3)


def test_scores_that_cannot_be_given_are_refused_before_any_forward(base: Path) -> None:
    asked = Asked(base)
    before = asked.engine.forward_passes
    with pytest.raises(BadInput, match="empty"):
        asked.ask("a", (Message(role="user", content="x"), Message(role="user", content="")), want="score")
    with pytest.raises(PromptTooLong):
        asked.ask("a", "word " * 300, want="score")
    with pytest.raises(BadInput, match="none that another comes before"):
        asked.ask("a", "x", want="score")
    with pytest.raises(BadInput, match="no vectors"):
        asked.ask("a", "x", want="embedding")
    assert asked.engine.forward_passes == before


def test_logits_of_a_long_scored_text_are_taken_in_parts(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    widest = []
    right = Forward.__call__

    def forward(self: Forward, ids: torch.Tensor, *args: Any, keep: int) -> torch.Tensor:
        widest.append(ids.shape[0] * keep)
        return right(self, ids, *args, keep=keep)

    asked = Asked(base, chunk=512)
    monkeypatch.setattr(Forward, "__call__", forward)
    monkeypatch.setattr(batch_module, "SCORED_BYTES", 4 * asked.batch.vocabulary * 10)
    asked.ask("s", "word " * 40, want="score")
    asked.finish()
    assert max(widest) == 10
    assert asked.completion("s").usage.completion_tokens > 100


# --- choices ---


def probabilities(folder: Path, prompt: str, options: list[str], *, ends: bool = False) -> dict[str, float]:
    """Of each option, by one plain forward each."""
    _, tokenizer = plain(folder)
    sums = {}
    for option in options:
        ids = tokenizer(prompt + option)["input_ids"]
        opening = [tokenizer(prompt + o)["input_ids"] for o in options]
        common = next(n for n in range(len(ids)) if any(n + 1 >= len(o) or o[n] != ids[n] for o in opening))
        sums[option] = sum(teacher_forced(folder, [*ids, *([0] if ends else [])])[common - 1 :])
    best = max(sums.values())
    whole = sum(math.exp(v - best) for v in sums.values())
    return {k: math.exp(v - best) / whole for k, v in sums.items()}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_probabilities_of_options_are_those_of_one_plain_forward_each(tmp_path: Path, architecture: str) -> None:
    folder = tiny_checkpoint(tmp_path / "m", architecture)
    options = [" positive", " clearly negative", " neither good nor bad", " dog", " fox jumps"]
    prompt = "The quick brown fox jumps over the lazy dog. The sentiment is"
    asked = Asked(folder, chunk=16)
    asked.ask("free", "What?", max_tokens=12)
    asked.step(2)
    asked.ask("c", prompt, form=ChoiceForm(options=tuple(options)), raw=True)
    asked.finish()
    got, expected = asked.completion("c"), probabilities(folder, prompt, options)
    assert got.options == pytest.approx(expected, rel=1e-2, abs=1e-6)
    assert sum((got.options or {}).values()) == pytest.approx(1)
    assert got.text == max(expected, key=lambda o: expected[o])
    assert asked.completion("free").text == one_by_one(folder, "What?", 12)[0]


def test_a_prompt_is_read_once_for_all_its_options(base: Path) -> None:
    asked = Asked(base, chunk=512, max_rows=4)
    prompt, options = "word " * 30, tuple(f" option {n}" for n in range(10))
    asked.ask("c", prompt, form=ChoiceForm(options=options), raw=True)
    asked.finish()
    _, tokenizer = plain(base)
    whole = [tokenizer(prompt + o)["input_ids"] for o in options]
    once = len(tokenizer(prompt)["input_ids"])
    behind = sum(len(ids) - once for ids in whole)
    assert asked.batch.tokens_read <= once + behind + 3 * len(options)
    assert asked.completion("c").usage.completion_tokens <= behind


def test_an_option_that_begins_another_is_held_to_end_there(base: Path) -> None:
    asked = Asked(base)
    asked.ask("c", "Is it good? Answer:", form=ChoiceForm(options=(" no", " no way", " yes")), raw=True)
    asked.finish()
    expected = probabilities(base, "Is it good? Answer:", [" no", " no way", " yes"], ends=True)
    assert asked.completion("c").options == pytest.approx(expected, rel=1e-2, abs=1e-6)


def test_an_option_that_the_tokenizer_joins_to_the_prompt_is_scored_as_it_is_read(base: Path) -> None:
    _, tokenizer = plain(base)
    prompt, option = "The cap", "ital"
    opening = tokenizer(prompt)["input_ids"]
    assert tokenizer(prompt + option)["input_ids"][: len(opening)] != opening  # the border is within a token
    asked = Asked(base)
    asked.ask("c", prompt, form=ChoiceForm(options=(option, "x", "able")), raw=True)
    asked.finish()
    assert asked.completion("c").options == pytest.approx(probabilities(base, prompt, [option, "x", "able"]), rel=1e-2, abs=1e-6)


def test_a_chat_chooses_as_the_assistant(chat: Path) -> None:
    asked = Asked(chat)
    asked.ask("c", CHAT, form=ChoiceForm(options=("Yes", "No", "Maybe")), stream=True)
    asked.finish()
    prompt = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nIs it good?<|im_end|>\n<|im_start|>assistant\n"
    got = asked.completion("c")
    assert got.options == pytest.approx(probabilities(chat, prompt, ["Yes", "No", "Maybe"]), rel=1e-2, abs=1e-6)
    assert "".join(e.text for e in asked.events if isinstance(e, Delta)) == got.text


def test_choices_that_cannot_be_made_are_refused(base: Path) -> None:
    asked = Asked(base)
    with pytest.raises(BadInput, match="the same"):
        asked.ask("c", "x", form=ChoiceForm(options=("a", "a")))
    with pytest.raises(PromptTooLong):
        asked.ask("c", "x", form=ChoiceForm(options=("a", "word " * 150)))
    with pytest.raises(BadInput, match="runs into the options"):
        asked.ask("c", "q", form=ChoiceForm(options=("uick", "x")), raw=True)
    assert not asked.engine.busy


def test_a_cancelled_choice_leaves_nothing_behind(base: Path) -> None:
    asked = Asked(base, max_rows=2)
    asked.ask("c", "word " * 20, form=ChoiceForm(options=tuple(f" option {n}" for n in range(20))))
    asked.step(3)
    asked.engine.cancel("c")
    asked.ask("after", "x", max_tokens=5)
    asked.finish()
    assert asked.batch.cache_bytes == 0
    assert asked.completion("after").text == one_by_one(base, "x", 5)[0]


def test_options_that_do_not_fit_together_are_split_and_nobody_sees_it(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked(base, max_rows=8)
    right = asked.batch.model.forward

    def forward(**given: Any) -> Any:
        if given["input_ids"].shape[0] > 2:
            raise torch.OutOfMemoryError("too many rows")
        return right(**given)

    monkeypatch.setattr(asked.batch.model, "forward", forward)
    options = [" positive", " clearly negative", " neither good nor bad", " dog", " fox jumps"]
    asked.ask("c", "The sentiment is", form=ChoiceForm(options=tuple(options)), raw=True)
    asked.finish()
    assert asked.completion("c").options == pytest.approx(probabilities(base, "The sentiment is", options), rel=1e-2, abs=1e-6)


def test_what_a_decoder_can_do_is_said_when_it_is_loaded(base: Path) -> None:
    assert set(Asked(base).loaded.capabilities) >= {"generate", "score", "choice", "json_schema", "regex"}
    with pytest.raises(BadInput, match="infill"):
        Asked(base).ask("a", "def f(", suffix="return x")


def test_a_raw_prompt_is_put_to_a_chat_model_as_it_stands(chat: Path) -> None:
    asked = Asked(chat)
    asked.ask("a", "The quick brown", raw=True, max_tokens=10)
    asked.finish()
    assert asked.completion("a").text == one_by_one(chat, "The quick brown", 10)[0]


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_seeded_answer_is_the_same_whatever_shares_its_batch_forms_and_penalties_included(base: Path, data: st.DataObject) -> None:
    kinds: list[dict[str, Any]] = [
        {"temperature": 1.0}, {"temperature": 1.3, "top_k": 9}, {"temperature": 0.8, "top_p": 0.7, "repetition_penalty": 1.2},
        {"temperature": 1.0, "form": JsonForm(definition=PERSON)}, {"temperature": 1.1, "form": RegexForm(pattern="[a-z ]{5,40}")}, {},
        {"repetition_penalty": 1.5}, {"form": ChoiceForm(options=(" a", " dog"))}, {"temperature": 1.0, "min_p": 0.02, "logprobs": 2},
    ]
    mine = data.draw(st.sampled_from([k for k in kinds if k.get("temperature")]))
    seed = data.draw(st.integers(0, 2**31))
    prompt = data.draw(st.sampled_from(("def add(a", "The quick brown fox jumps. " * 6)))
    alone = Asked(base, max_rows=8)
    alone.ask("a", prompt, max_tokens=25, seed=seed, **mine)
    alone.finish()
    crowded = Asked(base, max_rows=8, chunk=data.draw(st.sampled_from((8, 32, 512))))
    others = data.draw(st.lists(st.tuples(st.sampled_from(kinds), st.sampled_from((prompt, prompt[:6], "What?")), st.integers(0, 4)), max_size=7))
    place = data.draw(st.integers(0, len(others)))
    for n, (kind, text, steps) in enumerate([*others[:place], (mine, prompt, 1), *others[place:]]):
        crowded.ask("a" if n == place else f"other {n}", text, max_tokens=25, seed=seed if n == place else n, **kind)
        crowded.step(steps)
    crowded.finish()
    assert crowded.completion("a").text == alone.completion("a").text
