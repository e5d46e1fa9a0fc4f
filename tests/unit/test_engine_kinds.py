"""Encoders and encoder-decoders in the torch engine, beside decoders."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from catalogue_tiny import EIGHTEEN, plain
from symposia_shared.errors import BadInput, Damaged, PromptTooLong
from symposia_shared.prompts import ChoiceForm, Sampling, user
from symposia_shared.turns import Completion
from symposia_worker.engines import encoder as encoding
from symposia_worker.engines.protocol import Delta, Done, Event, Failed, First, Generate, Load, Loaded
from symposia_worker.engines.torch import TorchEngine
from symposia_worker.engines.vectors import float32_digits
from tiny import edit_config, tiny_checkpoint

TEXTS = ("x", "The quick brown fox jumps over the lazy dog. " * 2, "def add(a, b):\n    return a + b", "What?", "Zwölf Boxkämpfer", "a b c " * 12)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    wanted = {c.slug: c for c in EIGHTEEN}
    made = {name: plain(wanted[slug], tmp_path_factory.mktemp(name))[0] for name, slug in (("t5", "codet5-large-ntp-py"), ("encoder", "codebert-base"))}
    return made | {"decoder": tiny_checkpoint(tmp_path_factory.mktemp("decoder"), "llama")}


class Asked:
    """An engine with one checkpoint, and what came of the requests to it."""

    def __init__(self, folder: Path, *, memory: int = 1 << 30, max_rows: int = 4) -> None:
        self.engine = TorchEngine("cpu", memory, max_rows=max_rows)
        self.loaded = self.load("tiny", folder)
        self.events: list[Event] = []

    def load(self, name: str, folder: Path) -> Loaded:
        return self.engine.load(Load(checkpoint=name, folder=str(folder)))

    @property
    def lane(self) -> Any:
        return self.engine._residents["tiny"].batch

    def embed(self, request_id: str, *texts: str) -> None:
        messages = tuple(m for t in texts for m in user(t))
        self.engine.admit(Generate(id=request_id, checkpoint="tiny", messages=messages, want="embedding"))

    def ask(self, request_id: str, prompt: str, *, stream: bool = False, checkpoint: str = "tiny", **sampling: Any) -> None:
        self.engine.admit(Generate(id=request_id, checkpoint=checkpoint, messages=user(prompt), sampling=Sampling(**sampling), stream=stream))

    def finish(self) -> None:
        while self.engine.busy:
            self.events += self.engine.step()

    def completion(self, request_id: str) -> Completion:
        (done,) = [e for e in self.events if isinstance(e, Done) and e.id == request_id]
        return done.completion

    def vectors(self, request_id: str) -> torch.Tensor:
        return torch.tensor(self.completion(request_id).vectors)


@cache
def generated(folder: Path, prompt: str, most: int) -> list[int]:
    """The tokens plain ``generate`` gives an encoder-decoder's answer."""
    model, tokenizer = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder).eval(), transformers.AutoTokenizer.from_pretrained(folder)
    out = model.generate(tokenizer(prompt, return_tensors="pt")["input_ids"], max_new_tokens=most, do_sample=False)
    return list(out[0, 1:].tolist())


def written(folder: Path, ids: list[int]) -> str:
    text: str = transformers.AutoTokenizer.from_pretrained(folder).decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text


# -- encoders


def test_texts_in_one_batch_have_the_vectors_they_have_alone(folders: dict[str, Path]) -> None:
    together, alone = Asked(folders["encoder"]), Asked(folders["encoder"])
    together.embed("all", *TEXTS)
    together.finish()
    for n, text in enumerate(TEXTS):
        alone.embed(str(n), text)
        alone.finish()
        assert torch.allclose(together.vectors("all")[n], alone.vectors(str(n))[0], atol=1e-5)
    assert torch.allclose(together.vectors("all").norm(dim=1), torch.ones(len(TEXTS)), atol=1e-5)
    tokens = sum(alone.completion(str(n)).usage.prompt_tokens for n in range(len(TEXTS)))
    assert together.completion("all").usage.prompt_tokens == tokens


def test_every_float32_survives_in_nine_digits(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    short, whole = Asked(folders["encoder"]), Asked(folders["encoder"])
    short.embed("a", *TEXTS)
    short.finish()
    monkeypatch.setattr(encoding, "float32_digits", tuple)
    whole.embed("a", *TEXTS)
    whole.finish()
    assert torch.equal(short.vectors("a"), whole.vectors("a"))
    digits = [len(repr(x).split("e")[0].lstrip("-0.").replace(".", "")) for v in short.completion("a").vectors or () for x in v]
    assert max(digits) <= 9
    dice = torch.randint(-2**31, 2**31, (20_000,), generator=torch.Generator().manual_seed(0)).to(torch.int32).view(torch.float32)
    numbers = dice[dice.isfinite()]
    assert torch.equal(torch.tensor(float32_digits(numbers.tolist())), numbers)


def test_texts_of_several_requests_share_forward_passes_by_length(folders: dict[str, Path]) -> None:
    asked = Asked(folders["encoder"])
    for n in range(8):
        asked.embed(str(n), "What?", "a b c " * 12)
    asked.finish()
    assert asked.engine.forward_passes == 2
    assert sum(isinstance(e, Done) for e in asked.events) == 8


def test_a_forward_pass_reads_no_more_tokens_than_its_budget(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked(folders["encoder"])
    asked.lane.budget_tokens = 64
    sizes: list[int] = []
    right = encoding.vectors_of
    monkeypatch.setattr(encoding, "vectors_of", lambda model, rows: (sizes.append(len(rows) * max(map(len, rows))), right(model, rows))[1])
    asked.embed("a", *["What is it?"] * 20)
    asked.finish()
    assert len(sizes) > 1
    assert max(sizes) <= 64


def test_a_text_longer_than_the_encoder_reads_is_refused_and_not_cut(folders: dict[str, Path]) -> None:
    asked = Asked(folders["encoder"])
    assert asked.loaded.context == 128  # of 130 positions two stand for no token
    with pytest.raises(PromptTooLong, match=r"text 1 has \d+ tokens .* reads 128; a text is not cut"):
        asked.embed("a", "x", "a b c " * 200)
    assert not asked.engine.busy


def test_an_encoder_is_asked_for_vectors_only_and_a_blank_text_is_refused(folders: dict[str, Path]) -> None:
    asked = Asked(folders["encoder"])
    with pytest.raises(BadInput, match="it embeds texts and writes none"):
        asked.ask("a", "x")
    with pytest.raises(BadInput, match="text 1 is empty"):
        asked.embed("a", "x", " \n")


def test_a_cancelled_request_leaves_the_others_vectors(folders: dict[str, Path]) -> None:
    asked = Asked(folders["encoder"])
    asked.embed("a", *TEXTS)
    asked.embed("b", *TEXTS)
    asked.events += asked.engine.step()
    assert asked.engine.cancel("a")
    assert not asked.engine.cancel("a")
    asked.finish()
    assert [e.id for e in asked.events if isinstance(e, Done)] == ["b"]


def test_a_forward_pass_that_is_out_of_memory_is_split_and_nobody_sees_it(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked(folders["encoder"])
    right = asked.lane.model.network.forward

    def forward(**given: Any) -> Any:
        if given["input_ids"].shape[0] > 2:
            raise torch.OutOfMemoryError("too many rows")
        return right(**given)

    monkeypatch.setattr(asked.lane.model.network, "forward", forward)
    asked.embed("a", *["What?"] * 9)
    asked.finish()
    assert asked.vectors("a").shape[0] == 9


def test_a_forward_pass_that_fails_fails_its_requests_alone(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked(folders["encoder"])
    with monkeypatch.context() as broken:
        broken.setattr(asked.lane.model.network, "forward", lambda **_: 1 / 0)
        asked.embed("a", "x")
        asked.finish()
    asked.embed("b", "x")
    asked.finish()
    assert [(type(e), e.id) for e in asked.events] == [(Failed, "a"), (Done, "b")]


def test_an_encoder_whose_batch_differs_from_single_texts_is_not_served(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "_pooled", lambda states, mask, how: states.mean(1))  # padding counted in
    with pytest.raises(Damaged, match="self-test"):
        Asked(folders["encoder"])


@pytest.mark.parametrize(("mode", "expected"), [
    ("pooling_mode_cls_token", lambda states: states[0]), ("pooling_mode_max_tokens", lambda states: states.amax(0)),
    ("pooling_mode_lasttoken", lambda states: states[-1]), ("pooling_mode_mean_tokens", lambda states: states.mean(0)),
])
def test_the_pooling_its_sentence_transformers_files_state_is_used(folders: dict[str, Path], tmp_path: Path, mode: str, expected: Any) -> None:
    folder = Path(shutil.copytree(folders["encoder"], tmp_path / "m"))
    state_pooling(folder, {mode: True})
    asked = Asked(folder)
    asked.embed("a", *TEXTS)
    asked.finish()
    model, tokenizer = transformers.AutoModel.from_pretrained(folder).eval(), transformers.AutoTokenizer.from_pretrained(folder)
    for text, vector in zip(TEXTS, asked.vectors("a"), strict=True):
        with torch.inference_mode():
            pooled = expected(model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0])
        assert torch.allclose(vector, pooled / pooled.norm(), atol=1e-5)


def state_pooling(folder: Path, pooling: dict[str, object], *further: str) -> None:
    kinds = ["Transformer", "Pooling", *further]
    (folder / "modules.json").write_text(json.dumps([
        {"idx": n, "name": str(n), "path": "" if n == 0 else f"{n}_{kind}", "type": f"sentence_transformers.models.{kind}"}
        for n, kind in enumerate(kinds)]))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))


def test_a_chain_of_modules_that_is_not_understood_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folders["encoder"], tmp_path / "m"))
    state_pooling(folder, {"pooling_mode_mean_tokens": True}, "Dense")
    with pytest.raises(BadInput, match="'Dense'"):
        Asked(folder)
    (folder / "sentence_bert_config.json").write_text('{"do_lower_case": true}')
    state_pooling(folder, {"pooling_mode_mean_tokens": True})
    with pytest.raises(BadInput, match="lower case"):
        Asked(folder)
    (folder / "sentence_bert_config.json").unlink()
    state_pooling(folder, {"pooling_mode_mean_sqrt_len_tokens": True}, "Normalize")
    with pytest.raises(BadInput, match="mean_sqrt_len"):
        Asked(folder)


def test_a_stated_longest_text_limits_what_is_read(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folders["encoder"], tmp_path / "m"))
    state_pooling(folder, {"pooling_mode_mean_tokens": True}, "Normalize")
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 40}')
    assert Asked(folder).loaded.context == 40


# -- encoder-decoders


def test_rows_that_begin_and_end_apart_have_the_answers_of_one_by_one_generate(folders: dict[str, Path]) -> None:
    asked = Asked(folders["t5"], max_rows=8)
    for n, text in enumerate(TEXTS):
        asked.ask(str(n), text, max_tokens=6 + 5 * n)
        if n % 2:
            asked.events += asked.engine.step()
    asked.finish()
    for n, text in enumerate(TEXTS):
        ids = generated(folders["t5"], text, 6 + 5 * n)
        got = asked.completion(str(n))
        assert (got.text, got.usage.completion_tokens) == (written(folders["t5"], ids), len(ids))


def test_requests_share_forward_passes_and_a_row_leaves_when_it_has_ended(folders: dict[str, Path]) -> None:
    asked = Asked(folders["t5"])
    for n, most in enumerate((2, 3, 12)):
        asked.ask(str(n), TEXTS[2], max_tokens=most)
    seen = []
    while asked.engine.busy:
        asked.events += asked.engine.step()
        seen.append(asked.engine.running)
    assert asked.engine.forward_passes == 1 + 12  # the encoder once for all, then a pass a token
    assert seen == [3, 2, *[1] * 9, 0]


def test_a_seeded_answer_is_the_same_whatever_shares_its_micro_batch(folders: dict[str, Path]) -> None:
    how: dict[str, Any] = {"max_tokens": 20, "temperature": 1.5, "seed": 11, "top_p": 0.9, "repetition_penalty": 1.2}
    alone, crowded = Asked(folders["t5"]), Asked(folders["t5"])
    alone.ask("a", TEXTS[2], **how)
    crowded.ask("x", TEXTS[4], max_tokens=5, temperature=1.0, seed=1)
    crowded.ask("a", TEXTS[2], **how)
    crowded.ask("y", TEXTS[3], max_tokens=30)
    for asked in (alone, crowded):
        asked.finish()
    assert alone.completion("a").text == crowded.completion("a").text
    assert alone.completion("a").logprob_mean == pytest.approx(crowded.completion("a").logprob_mean, abs=1e-5)


def test_an_answer_is_streamed_and_ends_before_its_stop_string(folders: dict[str, Path]) -> None:
    whole = written(folders["t5"], generated(folders["t5"], TEXTS[1], 24))
    stop = whole[len(whole) // 2 : len(whole) // 2 + 2]
    asked = Asked(folders["t5"])
    asked.ask("a", TEXTS[1], stream=True, max_tokens=24, stop=(stop,))
    asked.finish()
    got = asked.completion("a")
    assert (got.text, got.finish_reason) == (whole[: whole.index(stop)], "stop")
    assert "".join(e.text for e in asked.events if isinstance(e, Delta)) == got.text
    assert [type(e) for e in asked.events if not isinstance(e, Delta)] == [First, Done]


def test_prompts_and_wishes_an_encoder_decoder_cannot_serve_are_refused(folders: dict[str, Path]) -> None:
    asked = Asked(folders["t5"])
    with pytest.raises(PromptTooLong, match="reads 128"):
        asked.ask("a", "a b c " * 200)
    with pytest.raises(BadInput, match="typed output"):
        asked.ask("a", "x", form=ChoiceForm(options=("a", "b")))
    with pytest.raises(BadInput, match="cannot be asked for embedding"):
        asked.embed("a", "x")
    assert not asked.engine.busy


def test_a_micro_batch_that_fits_nowhere_fails_and_the_others_wait_for_room(folders: dict[str, Path]) -> None:
    roomy = Asked(folders["t5"])
    token = roomy.loaded.cache_bytes_per_token
    asked = Asked(folders["t5"], memory=roomy.loaded.bytes + 60 * token)
    asked.ask("too large", TEXTS[2], max_tokens=100)
    for n in range(3):
        asked.ask(str(n), "What?", max_tokens=40)
    most = 0
    while asked.engine.busy:
        asked.events += asked.engine.step()
        most = max(most, asked.engine.running)
    (failed,) = [e for e in asked.events if isinstance(e, Failed)]
    assert (failed.id, failed.cause) == ("too large", "out_of_memory")
    assert most == 1
    for n in range(3):
        assert asked.completion(str(n)).text == written(folders["t5"], generated(folders["t5"], "What?", 40))


def test_a_micro_batch_that_is_out_of_memory_is_split_and_nobody_sees_it(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked(folders["t5"])
    right = asked.lane.model.network.forward

    def forward(**given: Any) -> Any:
        if given["decoder_input_ids"].shape[0] > 2 and given["past_key_values"].get_seq_length() > 4:
            raise torch.OutOfMemoryError("too many rows")
        return right(**given)

    monkeypatch.setattr(asked.lane.model.network, "forward", forward)
    for n in range(4):
        asked.ask(str(n), TEXTS[n], max_tokens=12, stream=True)
    asked.finish()
    for n in range(4):
        text = written(folders["t5"], generated(folders["t5"], TEXTS[n], 12))
        assert asked.completion(str(n)).text == text
        assert "".join(e.text for e in asked.events if isinstance(e, Delta) and e.id == str(n)) == text


ALIKE = ("What?", "Who goes?", "x", "a b c d e f g h i j", "def add(a, b):", "Zwölf Boxkämpfer", "one, two and three", "return a + b")


def half_read(folder: Path, *, steps: int = 1, most: int = 12) -> Asked:
    """ALIKE asked at once of an encoder that reads two or three of them in a forward pass, after ``steps`` steps."""
    asked = Asked(folder, max_rows=8)
    asked.lane.budget_tokens = 40
    for n, text in enumerate(ALIKE):
        asked.ask(str(n), text, max_tokens=most)
    for _ in range(steps):
        asked.events += asked.engine.step()
    return asked


def test_a_micro_batch_is_read_in_slices_and_written_together(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    asked = half_read(folders["t5"], steps=0)
    encode = asked.lane.model.network.encoder.forward

    def forward(*args: Any, **given: Any) -> Any:
        sizes.append(given["input_ids"].numel())
        return encode(*args, **given)

    monkeypatch.setattr(asked.lane.model.network.encoder, "forward", forward)
    asked.finish()
    assert len(sizes) > 2
    assert max(sizes) <= 40
    assert asked.engine.forward_passes == len(sizes) + 12  # apart, each of the slices would be written by passes of its own
    for n, text in enumerate(ALIKE):
        ids = generated(folders["t5"], text, 12)
        got = asked.completion(str(n))
        assert (got.text, got.usage.completion_tokens) == (written(folders["t5"], ids), len(ids))


def test_others_are_written_while_a_micro_batch_is_read(folders: dict[str, Path]) -> None:
    asked = Asked(folders["t5"], max_rows=9)
    asked.load("decoder", folders["decoder"])
    asked.ask("first", TEXTS[2], max_tokens=2)
    asked.ask("decoded", "def add(a", checkpoint="decoder", max_tokens=2)
    asked.lane.budget_tokens = 40
    asked.events += asked.engine.step()
    for n, text in enumerate(ALIKE):
        asked.ask(str(n), text, max_tokens=4)
    asked.events += asked.engine.step()
    assert {e.id for e in asked.events if isinstance(e, Done)} == {"first", "decoded"}
    assert not any(e.id == "0" for e in asked.events)
    asked.finish()
    assert asked.completion("0").text == written(folders["t5"], generated(folders["t5"], ALIKE[0], 4))


@pytest.mark.parametrize("gone", [(0, 5), (2, 3, 4, 5, 6, 7), (0, 1), tuple(range(8))])
def test_a_row_may_leave_while_its_micro_batch_is_being_read(folders: dict[str, Path], gone: tuple[int, ...]) -> None:
    asked = half_read(folders["t5"])
    assert asked.events == []
    assert asked.lane.running == 8
    assert all(asked.engine.cancel(str(n)) for n in gone)
    assert asked.lane.running == 8 - len(gone)
    assert bool(asked.lane.cache_bytes) == bool(asked.lane.running)
    asked.finish()
    for n in set(range(8)) - set(gone):
        assert asked.completion(str(n)).text == written(folders["t5"], generated(folders["t5"], ALIKE[n], 12))


def test_what_is_half_read_has_its_memory_promised_and_gives_it_back(folders: dict[str, Path]) -> None:
    whole = half_read(folders["t5"], steps=0)
    asked = half_read(folders["t5"])
    assert asked.lane.cache_bytes == whole.lane._needed(list(whole.lane.waiting))
    assert sorted(asked.lane.drop_all()) == [str(n) for n in range(8)]
    assert (asked.lane.cache_bytes, asked.engine.busy) == (0, False)


def test_an_encoder_that_is_out_of_memory_reads_fewer_rows_and_nobody_sees_it(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    asked = half_read(folders["t5"], steps=0)
    encode = asked.lane.model.network.encoder.forward

    def forward(*args: Any, **given: Any) -> Any:
        if given["input_ids"].shape[0] > 1:
            raise torch.OutOfMemoryError("too many rows")
        return encode(*args, **given)

    asked.events += asked.engine.step()
    monkeypatch.setattr(asked.lane.model.network.encoder, "forward", forward)  # from the second slice on
    asked.finish()
    for n, text in enumerate(ALIKE):
        assert asked.completion(str(n)).text == written(folders["t5"], generated(folders["t5"], text, 12))


def test_cancelling_and_unloading_give_everything_back(folders: dict[str, Path]) -> None:
    asked = Asked(folders["t5"], max_rows=2)
    for n in range(4):
        asked.ask(str(n), TEXTS[n], max_tokens=30)
    asked.engine.step()
    assert asked.engine.cancel("0")
    assert asked.engine.cancel("3")
    assert not asked.engine.cancel("3")
    assert sorted(e.id for e in asked.engine.unload("tiny") if isinstance(e, Failed)) == ["1", "2"]
    assert asked.engine.resident == {}
    assert not asked.engine.busy


def test_a_t5_whose_decoding_is_wrong_is_not_served(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from symposia_worker.engines.seq2seq import MicroBatch

    right = MicroBatch.next_logits
    monkeypatch.setattr(MicroBatch, "next_logits", lambda self: right(self).roll(1, dims=-1))
    with pytest.raises(Damaged, match="self-test"):
        Asked(folders["t5"])


def test_a_t5_without_a_start_token_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folders["t5"], tmp_path / "m"))
    edit_config(folder, decoder_start_token_id=None)
    (folder / "generation_config.json").unlink(missing_ok=True)
    with pytest.raises(BadInput, match="names no token its answers begin with"):
        Asked(folder)


# -- side by side


def test_a_decoder_an_encoder_and_a_t5_are_advanced_side_by_side(folders: dict[str, Path]) -> None:
    asked = Asked(folders["encoder"])
    asked.load("t5", folders["t5"])
    asked.load("decoder", folders["decoder"])
    asked.ask("decoded", "def add(a", checkpoint="decoder", max_tokens=10)
    asked.ask("translated", TEXTS[2], checkpoint="t5", max_tokens=10)
    asked.embed("embedded", *TEXTS)
    asked.events += asked.engine.step()
    begun = {e.id for e in asked.events if isinstance(e, First)}
    assert begun == {"decoded", "translated"}
    asked.finish()
    assert {e.id for e in asked.events if isinstance(e, Done)} == {"decoded", "translated", "embedded"}
    assert set(asked.engine.resident) == {"tiny", "t5", "decoder"}
    assert asked.completion("translated").text == written(folders["t5"], generated(folders["t5"], TEXTS[2], 10))
