from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("openvino_genai")
pytest.importorskip("optimum.intel")

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from asking import Stepped
from forms import exported
from symposia_shared.errors import BadInput, PromptTooLong, Unavailable
from symposia_shared.prompts import ChoiceForm, JsonForm, RegexForm, Sampling, user
from symposia_shared.turns import Completion
from symposia_worker.engines.openvino import OpenVINOEngine
from symposia_worker.engines.paged import BLOCK_TOKENS, Paged
from symposia_worker.engines.protocol import Delta, Done, Event, Failed, First, Generate, Load, Mode
from symposia_worker.engines.runtime import MODEL_XML, cache_bytes_per_token, openvino, pair_properties, properties
from symposia_worker.families.export import export
from symposia_worker.families.forms import ALLOWED
from tiny import tiny_checkpoint, tiny_tokenizer

#: the last is longer than any local window of the tiny checkpoints (8 tokens), and some are longer than a chunk
PROMPTS = (
    "def add(a", "The quick brown fox jumps over the lazy dog. " * 4, "What?", "Zwölf Boxkämpfer jagen Viktor quer über den Deich",
    "a " * 40, "Debate, then vote", "x",
)
ROOMY = 1 << 28

pytestmark = pytest.mark.usefixtures("one_thread")

Forms = Callable[[str], Path]


@pytest.fixture(scope="session")
def forms(tmp_path_factory: pytest.TempPathFactory) -> Forms:
    return lambda architecture: exported(tmp_path_factory, architecture)


class Asked(Stepped):
    """An engine with one form."""

    def __init__(self, folder: Path, mode: Mode = "exact", *, memory: int = ROOMY, max_rows: int = 4) -> None:
        super().__init__(OpenVINOEngine("cpu", memory, max_rows=max_rows),
                         Load(checkpoint="tiny", folder=str(folder / mode), engine="openvino", mode=mode))

    def ask(self, request_id: str, prompt: str, *, stream: bool = False, **sampling: object) -> None:
        self.engine.admit(Generate(id=request_id, checkpoint="tiny", messages=user(prompt), sampling=Sampling(**sampling), stream=stream))


@cache
def plain(folder: Path) -> tuple[Any, Any]:
    """(model, tokenizer) as transformers loads them."""
    return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


@cache
def one_by_one(folder: Path, prompt: str, most: int, penalty: float = 1.0) -> tuple[str, int]:
    """(text, tokens) that plain ``generate`` gives."""
    model, tokenizer = plain(folder)
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=most, do_sample=False, pad_token_id=0,
                         repetition_penalty=penalty)[0, ids.shape[1] :]
    return tokenizer.decode(out, skip_special_tokens=True, clean_up_tokenization_spaces=False), len(out)


@pytest.fixture
def llama(forms: Forms) -> Asked:
    return Asked(forms("llama"))


@pytest.mark.parametrize("architecture", ALLOWED)
def test_exact_answers_with_staggered_joins_equal_torchs_one_by_one(forms: Forms, architecture: str) -> None:
    folder = forms(architecture)
    asked = Asked(folder)
    for n, prompt in enumerate(PROMPTS):
        asked.ask(str(n), prompt, max_tokens=8 + 5 * n)
        asked.step(2)
    asked.finish()
    for n, prompt in enumerate(PROMPTS):
        got = asked.completion(str(n))
        assert (got.text, got.usage.completion_tokens) == one_by_one(folder / "torch", prompt, 8 + 5 * n)


def test_a_repetition_penalty_is_torchs(forms: Forms, llama: Asked) -> None:
    llama.ask("a", PROMPTS[1], max_tokens=30, repetition_penalty=1.3)
    llama.finish()
    assert llama.completion("a").text == one_by_one(forms("llama") / "torch", PROMPTS[1], 30, 1.3)[0]


@pytest.mark.parametrize("sampling", [
    {"temperature": 1.0}, {"temperature": 0.7, "top_p": 0.8, "repetition_penalty": 1.2}, {"temperature": 2.0, "top_k": 7, "min_p": 0.05},
])
def test_a_seeded_answer_is_the_same_alone_and_among_others(llama: Asked, sampling: dict[str, float]) -> None:
    seeded = {**sampling, "seed": 11, "max_tokens": 20}
    llama.ask("alone", PROMPTS[0], **seeded)
    llama.finish()
    for n, prompt in enumerate(PROMPTS):
        llama.ask(str(n), prompt, max_tokens=25, temperature=1.5, seed=n)
        llama.step()
    llama.ask("among", PROMPTS[0], **seeded)
    llama.ask("other", PROMPTS[0], **{**seeded, "seed": 12})
    llama.finish()
    assert llama.completion("among").text == llama.completion("alone").text
    assert llama.completion("other").text != llama.completion("alone").text


def test_top_k_one_and_a_high_min_p_are_greedy(forms: Forms, llama: Asked) -> None:
    llama.ask("k", PROMPTS[0], max_tokens=12, temperature=3.0, top_k=1, seed=1)
    llama.ask("p", PROMPTS[0], max_tokens=12, temperature=3.0, min_p=0.999, seed=1)
    llama.finish()
    greedy = one_by_one(forms("llama") / "torch", PROMPTS[0], 12)[0]
    assert (llama.completion("k").text, llama.completion("p").text) == (greedy, greedy)


def test_a_temperature_of_zero_needs_no_seed_and_ignores_the_other_filters(forms: Forms, llama: Asked) -> None:
    llama.ask("a", PROMPTS[0], max_tokens=12, temperature=0.0, top_k=3, top_p=0.5, min_p=1.0)
    llama.finish()
    assert llama.completion("a").text == one_by_one(forms("llama") / "torch", PROMPTS[0], 12)[0]


def test_log_probabilities_are_the_models_own_whatever_the_sampling(forms: Forms, llama: Asked) -> None:
    llama.ask("a", PROMPTS[1], max_tokens=9, logprobs=0, temperature=2.0, repetition_penalty=1.5, top_k=20, seed=5)
    (in_flight,) = next(iter(llama.engine._residents.values())).asked.values()
    llama.finish()
    got = llama.completion("a")
    model, tokenizer = plain(forms("llama") / "torch")
    assert got.logprobs is not None
    prompt = tokenizer(PROMPTS[1])["input_ids"]
    new = in_flight.ids[len(prompt) :]
    with torch.inference_mode():
        logprobs = model(torch.tensor([prompt + new])).logits[0].log_softmax(-1)
    wanted = [logprobs[len(prompt) - 1 + n, token].item() for n, token in enumerate(new)]
    assert [p.logprob for p in got.logprobs] == pytest.approx(wanted, abs=1e-3)
    assert got.logprob_mean == pytest.approx(sum(wanted) / len(wanted), abs=1e-3)


def test_a_stop_string_over_token_borders_ends_an_answer_and_the_others_go_on(forms: Forms, llama: Asked) -> None:
    whole, _ = one_by_one(forms("llama") / "torch", PROMPTS[0], 30)
    stop = whole[7:10]
    llama.ask("a", PROMPTS[0], max_tokens=30, stop=(stop,), stream=True)
    llama.ask("b", PROMPTS[3], max_tokens=30)
    llama.finish()
    got = llama.completion("a")
    assert got.text == whole[: whole.find(stop)]
    assert got.finish_reason == "stop"
    assert "".join(e.text for e in llama.events if isinstance(e, Delta)) == got.text
    assert llama.completion("b").text == one_by_one(forms("llama") / "torch", PROMPTS[3], 30)[0]


def test_a_stop_token_ends_an_answer(forms: Forms) -> None:
    asked = Asked(forms("llama"))
    (resident,) = asked.engine._residents.values()
    model, tokenizer = plain(forms("llama") / "torch")
    ids = tokenizer(PROMPTS[0], return_tensors="pt")["input_ids"]
    third = int(model.generate(ids, max_new_tokens=3, do_sample=False, pad_token_id=0)[0, -1])
    resident.served.renderer.stop_ids = frozenset({third})
    asked.ask("a", PROMPTS[0], max_tokens=30)
    asked.finish()
    assert (asked.completion("a").finish_reason, asked.completion("a").usage.completion_tokens) == ("stop", 3)


def test_first_token_deltas_and_text_agree(llama: Asked) -> None:
    llama.ask("a", PROMPTS[3], max_tokens=20, stream=True)
    llama.finish()
    assert next(e for e in llama.events if isinstance(e, First)).id == "a"
    assert "".join(e.text for e in llama.events if isinstance(e, Delta)) == llama.completion("a").text


def test_a_cancelled_request_is_silent_and_the_others_go_on(forms: Forms, llama: Asked) -> None:
    llama.ask("a", PROMPTS[0], max_tokens=60)
    llama.ask("b", PROMPTS[3], max_tokens=30)
    llama.step(3)
    assert llama.engine.cancel("a")
    assert not llama.engine.cancel("a")
    before = len(llama.events)
    llama.finish()
    assert all(getattr(e, "id", "") == "b" for e in llama.events[before:])
    assert llama.completion("b").text == one_by_one(forms("llama") / "torch", PROMPTS[3], 30)[0]
    assert not llama.engine.busy


def test_what_goes_beyond_the_pool_waits_its_turn_and_gives_the_same_tokens(forms: Forms) -> None:
    """Requests that each fit alone, in a pool that holds hardly more than one of them."""
    folder = forms("llama")
    per_token = cache_bytes_per_token(folder / "exact", "exact")
    size = (folder / "exact" / "openvino_model.bin").stat().st_size
    asked = Asked(folder, memory=size + 2 * 6 * BLOCK_TOKENS * per_token)
    assert asked.loaded.context == 6 * BLOCK_TOKENS
    for n, prompt in enumerate(PROMPTS):
        asked.ask(str(n), prompt, max_tokens=60)
    asked.finish()
    assert [asked.completion(str(n)).text for n in range(len(PROMPTS))] == [
        one_by_one(folder / "torch", p, 60)[0] for p in PROMPTS]


def test_a_prompt_longer_than_the_pool_is_refused_and_harms_nobody(forms: Forms) -> None:
    folder = forms("llama")
    per_token = cache_bytes_per_token(folder / "exact", "exact")
    size = (folder / "exact" / "openvino_model.bin").stat().st_size
    asked = Asked(folder, memory=size + 2 * 3 * BLOCK_TOKENS * per_token)
    asked.ask("small", PROMPTS[0], max_tokens=20)
    with pytest.raises(PromptTooLong, match="reads 96 with"):
        asked.ask("large", "Debate, then vote. " * 30)
    asked.ask("most", PROMPTS[0], max_tokens=10_000)
    asked.finish()
    assert asked.completion("small").text == one_by_one(folder / "torch", PROMPTS[0], 20)[0]
    most = asked.completion("most")
    assert most.usage.prompt_tokens + most.usage.completion_tokens <= 96


def test_what_genai_ignores_all_the_same_fails_and_is_not_silent(forms: Forms, llama: Asked) -> None:
    (resident,) = llama.engine._residents.values()
    # as if the check did not know the pool's size
    resident.admission.model = replace(resident.served, context=10_000)  # type: ignore[assignment]
    resident.paged = Paged(forms("llama") / "exact", "exact", blocks=2, rows=4, chunk_tokens=32, threads=1)
    llama.ask("a", "Debate, then vote. " * 30, max_tokens=5)
    for _ in range(50):
        llama.step()
    (failed,) = [e for e in llama.events if isinstance(e, Failed)]
    assert (failed.id, failed.cause) == ("a", "out_of_memory")


@pytest.mark.parametrize(("prompt", "error", "said"), [(" ", BadInput, "empty"), ("word " * 400, PromptTooLong, "reads 256")])
def test_a_bad_prompt_is_refused_before_any_decode(llama: Asked, prompt: str, error: type[BadInput], said: str) -> None:
    with pytest.raises(error, match=said):
        llama.ask("a", prompt)
    assert not llama.engine.busy


def test_a_token_outside_the_vocabulary_is_refused(llama: Asked) -> None:
    (resident,) = llama.engine._residents.values()
    resident.admission.model = replace(resident.served, embeddings=40)  # type: ignore[assignment]
    with pytest.raises(BadInput, match="knows 40"):
        llama.ask("a", PROMPTS[0])


def test_an_id_in_flight_is_not_asked_twice(llama: Asked) -> None:
    llama.ask("a", PROMPTS[0], max_tokens=3)
    with pytest.raises(BadInput, match="in flight already"):
        llama.ask("a", PROMPTS[0])
    llama.finish()
    llama.ask("a", PROMPTS[0], max_tokens=3)
    llama.finish()


def test_a_pipeline_that_raises_is_replaced_and_serves_the_next_request(forms: Forms, llama: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    (resident,) = llama.engine._residents.values()

    def raises() -> None:
        raise RuntimeError("for good")

    llama.ask("a", PROMPTS[0], max_tokens=20)
    llama.step()
    monkeypatch.setattr(resident.paged, "step", raises)
    llama.step()
    assert [e.id for e in llama.events if isinstance(e, Failed)] == ["a"]
    llama.ask("b", PROMPTS[0], max_tokens=20)
    llama.finish()
    assert llama.completion("b").text == one_by_one(forms("llama") / "torch", PROMPTS[0], 20)[0]


@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_the_cache_takes_what_the_planning_says(forms: Forms, mode: Mode) -> None:
    folder = forms("llama") / mode
    paged = Paged(folder, mode, blocks=4, rows=2, chunk_tokens=32, threads=1)
    paged.add([5, 6, 7], Sampling(), max_new=2)
    while paged.busy:
        paged.step()
    assert paged._pipeline.get_metrics().cache_size_in_bytes == 4 * BLOCK_TOKENS * cache_bytes_per_token(folder, mode)


def test_the_fast_mode_answers_on_eight_bit_weights(forms: Forms) -> None:
    folder = forms("llama")
    asked = Asked(folder, "fast")
    for n, prompt in enumerate(PROMPTS):
        asked.ask(str(n), prompt, max_tokens=10, temperature=1.0, seed=n)
    asked.finish()
    assert all(asked.completion(str(n)).usage.completion_tokens for n in range(len(PROMPTS)))
    weights = [(folder / mode / "openvino_model.bin").stat().st_size for mode in ("fast", "exact")]
    assert weights[0] < weights[1] / 3
    assert asked.engine.resident == {"tiny": weights[0]}


def test_requests_that_begin_with_one_that_has_ended_do_not_write_over_one_another(forms: Forms) -> None:
    """With GenAI's own prefix caching all of these were wrong: each was given the half-filled block of the one that had ended."""
    asked = Asked(forms("llama"), max_rows=16)
    head = "The quick brown fox jumps over the lazy dog. Debate, then vote;"
    asked.ask("head", head, max_tokens=1)
    asked.finish()
    assert asked.completion("head").usage.prompt_tokens % BLOCK_TOKENS
    prompts = [head + tail for tail in (" vote", " and", " " * 20 + "x", " ? " * 30, " the majority", " decides.")]
    for n, prompt in enumerate(prompts):
        asked.ask(str(n), prompt, max_tokens=12)
    asked.finish()
    assert [asked.completion(str(n)).text for n in range(len(prompts))] == [one_by_one(forms("llama") / "torch", p, 12)[0] for p in prompts]


def test_a_prefix_that_was_read_before_gives_the_same_tokens(forms: Forms, llama: Asked) -> None:
    for n in range(2):
        llama.ask(str(n), PROMPTS[1], max_tokens=15, logprobs=0)
        llama.finish()
    first, second = llama.completion("0"), llama.completion("1")
    assert (first.text, first.usage) == (second.text, second.usage)
    assert first.logprob_mean == pytest.approx(second.logprob_mean, abs=1e-4)
    assert first.text == one_by_one(forms("llama") / "torch", PROMPTS[1], 15)[0]


def test_prompt_log_probabilities_that_a_cache_swallowed_are_noticed(forms: Forms) -> None:
    paged = Paged(forms("llama") / "exact", "exact", blocks=8, rows=2, chunk_tokens=32, threads=1, prefix_caching=True)
    ids = [5, 9, 33] * 30
    assert len(paged.prompt_logprobs(ids)) == len(ids) - 1
    with pytest.raises(RuntimeError, match="log-probabilities came"):
        paged.prompt_logprobs(ids)


def test_two_checkpoints_are_served_side_by_side_and_one_is_unloaded(forms: Forms, llama: Asked) -> None:
    engine = llama.engine
    engine.load(Load(checkpoint="other", folder=str(forms("codegen") / "exact"), engine="openvino"))
    llama.ask("a", PROMPTS[0], max_tokens=20)
    engine.admit(Generate(id="b", checkpoint="other", messages=user(PROMPTS[0]), sampling=Sampling(max_tokens=20)))
    engine.admit(Generate(id="c", checkpoint="other", messages=user(PROMPTS[0]), sampling=Sampling(max_tokens=200)))
    while not any(isinstance(e, Done) and e.id == "b" for e in llama.events):
        llama.step()
    events = engine.unload("other")
    assert [(e.id, e.cause) for e in events if isinstance(e, Failed)] == [("c", "throttled")]
    llama.finish()
    assert llama.completion("a").text == one_by_one(forms("llama") / "torch", PROMPTS[0], 20)[0]
    assert llama.completion("b").text == one_by_one(forms("codegen") / "torch", PROMPTS[0], 20)[0]
    with pytest.raises(Unavailable, match="not resident"):
        engine.admit(Generate(id="d", checkpoint="other", messages=user("x")))
    assert list(engine.resident) == ["tiny"]


def test_a_form_that_does_not_fit_is_refused_and_nothing_of_it_is_held(forms: Forms) -> None:
    engine = OpenVINOEngine("cpu", 10_000)
    with pytest.raises(BadInput, match="Unload another checkpoint"):
        engine.load(Load(checkpoint="tiny", folder=str(forms("llama") / "exact"), engine="openvino"))
    assert (engine.resident, engine.held_bytes) == ({}, 0)


def test_a_folder_without_a_form_is_refused(forms: Forms) -> None:
    with pytest.raises(BadInput, match="no exported form"):
        OpenVINOEngine("cpu", ROOMY).load(Load(checkpoint="tiny", folder=str(forms("llama") / "torch"), engine="openvino"))


def test_a_gpu_is_no_device_for_it() -> None:
    with pytest.raises(Unavailable, match="serves a CPU"):
        OpenVINOEngine("cuda:0", ROOMY)


def test_abandoned_requests_are_told_and_leave_nothing(llama: Asked) -> None:
    llama.ask("a", PROMPTS[0], max_tokens=50)
    llama.step()
    assert llama.engine.abandon() == ["a"]
    llama.finish()
    assert (llama.engine.running, llama.engine.waiting) == (0, 0)


# --- what GenAI cannot do: our own loop over the same form


FORM = JsonForm(definition={"type": "object", "properties": {"mood": {"enum": ["good", "bad"]}, "n": {"type": "integer", "minimum": 0, "maximum": 9}},
                            "required": ["mood", "n"], "additionalProperties": False})


def by_torch(folder: Path, **asked: object) -> Completion:
    """What the torch engine answers."""
    from symposia_worker.engines.torch import TorchEngine

    engine = TorchEngine("cpu", ROOMY)
    engine.load(Load(checkpoint="tiny", folder=str(folder / "torch")))
    engine.admit(Generate(id="a", checkpoint="tiny", **asked))  # type: ignore[arg-type]
    events: list[Event] = []
    while engine.busy:
        events += engine.step()
    (done,) = [e for e in events if isinstance(e, Done)]
    return done.completion


@pytest.mark.parametrize("architecture", ALLOWED)
def test_typed_answers_with_staggered_joins_are_torchs(forms: Forms, architecture: str) -> None:
    """Masks over a model of random weights: every token is the best that the form allows, rows of mixed lengths side by side."""
    folder = forms(architecture)
    asked = Asked(folder, max_rows=3)
    form = RegexForm(pattern="[a-z ]{12,40}!")
    for n, prompt in enumerate(PROMPTS):
        asked.ask(str(n), prompt, max_tokens=12 + 3 * n, form=form)
        asked.ask(f"plain {n}", prompt, max_tokens=6)
        asked.step(2)
    asked.finish()
    for n, prompt in enumerate(PROMPTS):
        wanted = by_torch(folder, messages=user(prompt), sampling=Sampling(max_tokens=12 + 3 * n, form=form))
        got = asked.completion(str(n))
        assert (got.text, got.finish_reason, got.usage) == (wanted.text, wanted.finish_reason, wanted.usage)
        assert asked.completion(f"plain {n}").text == one_by_one(folder / "torch", prompt, 6)[0]


def test_an_answer_has_the_json_form_asked_for_drawn_too(llama: Asked) -> None:
    import json

    for n in range(6):
        llama.ask(str(n), PROMPTS[n], max_tokens=40, form=FORM, temperature=1.5, seed=n)
    llama.finish()
    for n in range(6):
        found = json.loads(llama.completion(str(n)).text)
        assert set(found) == {"mood", "n"}
        assert found["mood"] in ("good", "bad")
        assert 0 <= found["n"] <= 9


@pytest.mark.parametrize("form", [
    JsonForm(definition={"type": "nonsense"}), JsonForm(definition={"enum": []}), RegexForm(pattern="(unclosed"), RegexForm(pattern="(?=a)b"),
    JsonForm(definition={"type": "string", "minLength": 10_000_000}),
])
def test_a_bad_form_is_refused_before_admission_and_the_others_go_on(forms: Forms, llama: Asked, form: JsonForm | RegexForm) -> None:
    llama.ask("a", PROMPTS[0], max_tokens=20)
    llama.step()
    with pytest.raises(BadInput):
        llama.ask("bad", PROMPTS[0], form=form)
    llama.finish()
    assert llama.completion("a").text == one_by_one(forms("llama") / "torch", PROMPTS[0], 20)[0]


@pytest.mark.parametrize("options", [("Paris", "London", "a small town"), ("no", "no way", "yes"), ("a", "b")])
def test_a_choice_gives_torchs_probabilities(forms: Forms, llama: Asked, options: tuple[str, ...]) -> None:
    prompt, sampling = PROMPTS[1], Sampling(form=ChoiceForm(options=options))
    llama.ask("a", prompt, form=sampling.form)
    llama.ask("plain", PROMPTS[0], max_tokens=5)
    llama.finish()
    wanted = by_torch(forms("llama"), messages=user(prompt), sampling=sampling)
    got = llama.completion("a")
    assert got.text == wanted.text
    assert got.options == pytest.approx(wanted.options, abs=1e-3)


def test_options_that_are_many_are_scored_in_parts(forms: Forms, llama: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    from symposia_worker.engines import stateful

    monkeypatch.setattr(stateful, "_LOGIT_BYTES", 320 * 4 * 12)
    form = ChoiceForm(options=tuple(f"answer {n}" for n in range(30)))
    llama.ask("a", PROMPTS[0], form=form)
    llama.finish()
    wanted = by_torch(forms("llama"), messages=user(PROMPTS[0]), sampling=Sampling(form=form))
    assert llama.completion("a").options == pytest.approx(wanted.options, abs=1e-3)


def test_a_text_is_scored_as_torch_scores_it(forms: Forms, llama: Asked) -> None:
    text = user(PROMPTS[1] + PROMPTS[3])
    llama.engine.admit(Generate(id="a", checkpoint="tiny", messages=text, want="score", sampling=Sampling(logprobs=2)))
    llama.finish()
    wanted = by_torch(forms("llama"), messages=text, want="score", sampling=Sampling(logprobs=2))
    got = llama.completion("a")
    assert got.logprobs is not None
    assert wanted.logprobs is not None
    assert [p.token for p in got.logprobs] == [p.token for p in wanted.logprobs]
    assert [p.logprob for p in got.logprobs] == pytest.approx([p.logprob for p in wanted.logprobs], abs=1e-3)
    assert [p.top[0][0] for p in got.logprobs] == [p.top[0][0] for p in wanted.logprobs]


def test_the_likeliest_tokens_are_torchs(forms: Forms, llama: Asked) -> None:
    llama.ask("a", PROMPTS[0], max_tokens=6, logprobs=3)
    llama.finish()
    wanted = by_torch(forms("llama"), messages=user(PROMPTS[0]), sampling=Sampling(max_tokens=6, logprobs=3))
    got = llama.completion("a")
    assert (got.text, got.logprobs and [[t for t, _ in p.top] for p in got.logprobs]) == (
        wanted.text, wanted.logprobs and [[t for t, _ in p.top] for p in wanted.logprobs])


def test_typed_requests_are_cancelled_and_leave_the_others_whole(forms: Forms, llama: Asked) -> None:
    form = RegexForm(pattern="[a-z ]{60}")
    for n in range(3):
        llama.ask(str(n), PROMPTS[n], max_tokens=70, form=form)
    llama.step(12)
    assert llama.engine.cancel("0")
    llama.finish()
    for n in (1, 2):
        wanted = by_torch(forms("llama"), messages=user(PROMPTS[n]), sampling=Sampling(max_tokens=70, form=form))
        assert llama.completion(str(n)).text == wanted.text
    assert not llama.engine.busy


def test_the_fast_mode_holds_to_a_form_too(forms: Forms) -> None:
    asked = Asked(forms("llama"), "fast")
    for n, prompt in enumerate(PROMPTS):
        asked.ask(str(n), prompt, max_tokens=20, form=RegexForm(pattern="[0-9]{3}-[0-9]{2}"), temperature=1.0, seed=n)
    asked.ask("choice", PROMPTS[0], form=ChoiceForm(options=("one", "two")))
    asked.finish()
    import re

    assert all(re.fullmatch("[0-9]{3}-[0-9]{2}", asked.completion(str(n)).text) for n in range(len(PROMPTS)))
    assert sum((asked.completion("choice").options or {}).values()) == pytest.approx(1.0)


def test_a_device_without_room_for_the_weights_twice_refuses_forms_by_name(forms: Forms) -> None:
    size = (forms("llama") / "exact" / "openvino_model.bin").stat().st_size
    asked = Asked(forms("llama"), memory=int(size * 1.8))
    with pytest.raises(BadInput, match="a second time"):
        asked.ask("a", "hello", form=RegexForm(pattern="a+"))
    asked.ask("b", "hello", max_tokens=3)
    asked.finish()
    assert asked.completion("b").text


# --- in the engine process


def test_engines_of_one_process_share_its_memory(forms: Forms) -> None:
    import queue

    from symposia_worker.engines.process import Device, Loop
    from symposia_worker.engines.protocol import Command, Loaded, Unload, read_event

    told: list[bytes] = []
    commands: queue.SimpleQueue[Command | None] = queue.SimpleQueue()
    loop = Loop(Device("cpu", 1 << 24), commands, told.append)  # type: ignore[arg-type]
    loop._obey(Load(checkpoint="a", folder=str(forms("llama") / "torch"), engine="torch"))
    loop._obey(Load(checkpoint="b", folder=str(forms("llama") / "exact"), engine="openvino"))
    assert [type(read_event(line)) for line in told] == [Loaded, Loaded]
    torch_engine, openvino_engine = loop._engines["torch"], loop._engines["openvino"]
    assert torch_engine.held_bytes > 0  # type: ignore[attr-defined]
    assert torch_engine.memory_bytes == (1 << 24) - openvino_engine.held_bytes  # type: ignore[attr-defined]
    assert openvino_engine.memory_bytes == (1 << 24) - torch_engine.held_bytes  # type: ignore[attr-defined]
    assert torch_engine.held_bytes + openvino_engine.held_bytes <= 1 << 24  # type: ignore[attr-defined]
    loop._obey(Unload(checkpoint="b"))
    assert torch_engine.memory_bytes == 1 << 24  # type: ignore[attr-defined]


def test_answers_do_not_mix_where_prompts_begin_with_what_an_ended_request_left(forms: Forms) -> None:
    """As the trial's single token at load, with which every chat begins (GenAI's prefix caching shares such a block for writing)."""
    begun = AutoTokenizer.from_pretrained(forms("llama") / "exact").decode([1])
    prompts = [begun + text for text in ("def add(a", "What is the capital of", "Debate, then vote")]
    together = Asked(forms("llama"))
    for n, prompt in enumerate(prompts):
        together.ask(str(n), prompt, max_tokens=10)
    together.finish()
    for n, prompt in enumerate(prompts):
        alone = Asked(forms("llama"))
        alone.ask("a", prompt, max_tokens=10)
        alone.finish()
        assert together.completion(str(n)).text == alone.completion("a").text


@pytest.mark.parametrize("architecture", ["stablelm", "llama", "phi3"])
def test_a_fast_answer_is_the_same_alone_and_among_others(forms: Forms, architecture: str) -> None:
    """A key's 8 bits depend on no other token: else an answer would depend on where its prompt's chunks ended."""
    asked = Asked(forms(architecture), "fast", max_rows=8)
    prompts = [p * n for n, p in enumerate(PROMPTS, start=1)]
    for n, prompt in enumerate(prompts):
        asked.ask(f"alone{n}", prompt, max_tokens=24)
        asked.finish()
    for n, prompt in enumerate(prompts):
        asked.ask(f"among{n}", prompt, max_tokens=24)
        if n == 2:
            asked.step()
    asked.finish()
    for n in range(len(prompts)):
        alone, among = asked.completion(f"alone{n}"), asked.completion(f"among{n}")
        assert (among.text, among.usage) == (alone.text, alone.usage)
        assert among.logprob_mean == pytest.approx(alone.logprob_mean, abs=5e-4)


def test_a_checkpoint_without_an_end_token_is_exported_and_answers_to_its_length(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "torch", "llama", eos_token_id=None)
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    tokenizer.save_pretrained(folder)
    (folder / "generation_config.json").unlink()
    reports = export(folder, tmp_path, threads=1)
    assert [r.refused for r in reports] == [None, None]
    asked = Asked(tmp_path)
    asked.ask("a", PROMPTS[0], max_tokens=12)
    asked.finish()
    assert (asked.completion("a").text, 12) == one_by_one(folder, PROMPTS[0], 12)
    assert asked.completion("a").finish_reason == "length"


@pytest.mark.parametrize("made", [properties("exact", 1), properties("fast", 1), pair_properties(1)])
def test_no_engine_pins_its_threads_to_processors_that_another_one_pins_its_own_to(made: dict[str, Any], forms: Forms) -> None:
    compiled = openvino().Core().compile_model(forms("llama") / "exact" / MODEL_XML, "CPU", made)
    assert compiled.get_property("ENABLE_CPU_PINNING") is False
