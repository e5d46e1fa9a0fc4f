"""Encoder-decoders on the engine openvino: the exported form in the lane that torch's are in."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("openvino_genai")
pytest.importorskip("optimum.intel")

import torch
import transformers

from asking import Stepped
from forms import exported
from symposia_shared.errors import BadInput, Damaged, PromptTooLong, Unavailable
from symposia_shared.prompts import ChoiceForm, Sampling, user
from symposia_worker.engines.exported_pair import ExportedPair, PairResident
from symposia_worker.engines.openvino import OpenVINOEngine
from symposia_worker.engines.protocol import Delta, Done, Failed, First, Generate, Load, Mode
from symposia_worker.families.measure import greedy_answers
from tiny import edit_config

#: of 3 to 67 tokens
TEXTS = ("x", "The quick brown fox jumps over the lazy dog. " * 2, "def add(a, b):\n    return a + b", "What?", "Zwölf Boxkämpfer", "a b c " * 12)
ROOMY = 1 << 28

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(tmp_path_factory, "t5")


class Asked(Stepped):
    """An engine with the form."""

    def __init__(self, folder: Path, mode: Mode = "exact", *, memory: int = ROOMY, max_rows: int = 8) -> None:
        super().__init__(OpenVINOEngine("cpu", memory, max_rows=max_rows),
                         Load(checkpoint="tiny", folder=str(folder / mode), engine="openvino", mode=mode))
        self.sequences: dict[str, Any] = {}

    @property
    def lane(self) -> Any:
        resident = self.engine._residents["tiny"]
        assert isinstance(resident, PairResident)
        return resident.lane

    def ask(self, request_id: str, prompt: str, *, stream: bool = False, **sampling: Any) -> None:
        self.engine.admit(Generate(id=request_id, checkpoint="tiny", messages=user(prompt), sampling=Sampling(**sampling), stream=stream))
        self.sequences[request_id] = self.lane.waiting[-1].sequence

    def tokens(self, request_id: str) -> list[int]:
        return list(self.sequences[request_id].ids[1:])


@cache
def plain(folder: Path) -> tuple[Any, Any]:
    return transformers.AutoModelForSeq2SeqLM.from_pretrained(folder).eval(), transformers.AutoTokenizer.from_pretrained(folder)


@cache
def generated(folder: Path, prompt: str, most: int) -> list[int]:
    """The tokens plain ``generate`` gives one prompt."""
    model, tokenizer = plain(folder / "torch")
    out = model.generate(tokenizer(prompt, return_tensors="pt")["input_ids"], max_new_tokens=most, do_sample=False)
    return list(out[0, 1:].tolist())


def test_exact_tokens_are_those_of_one_by_one_generate_alone_and_in_batches_that_rows_join_and_leave(t5: Path) -> None:
    alone, together = Asked(t5), Asked(t5)
    for n, text in enumerate(TEXTS):
        alone.ask(str(n), text, max_tokens=20 - 3 * n)
        alone.finish()
        together.ask(str(n), text, max_tokens=20 - 3 * n)
        if n % 3 == 2:
            together.step()
    together.finish()
    assert together.engine.forward_passes < alone.engine.forward_passes
    for n, text in enumerate(TEXTS):
        wanted = generated(t5, text, 20 - 3 * n)
        assert alone.tokens(str(n)) == wanted
        assert together.tokens(str(n)) == wanted
        assert together.completion(str(n)).usage.completion_tokens == len(wanted)


def test_rows_that_leave_take_their_keys_and_values_with_them(t5: Path) -> None:
    """The decoder's cross attention keeps states of its own, which ``beam_idx`` does not move."""
    pair = ExportedPair("tiny", t5 / "exact", "exact", threads=1)
    tokenizer = plain(t5 / "torch")[1]
    prompts = [list(tokenizer(text)["input_ids"]) for text in TEXTS]
    most = [3, 20, 1, 12, 20, 7]
    together = greedy_answers(pair, prompts, most)
    for prompt, length, got in zip(prompts, most, together, strict=True):
        assert got == greedy_answers(pair, [prompt], [length])[0]
    ids = torch.tensor([prompts[1], prompts[1]])
    mask = torch.ones_like(ids)
    mask[0, 20:] = 0
    kept = pair.answers(pair.encode(ids, mask), mask)
    start = torch.tensor([[pair.start]])
    kept.advance(start.repeat(2, 1))
    kept.keep([1])
    assert torch.allclose(kept.advance(start)[0], pair.scores(prompts[1], [pair.start, pair.start])[-1], atol=1e-4)


def test_the_prompts_of_a_group_are_read_in_slices_and_written_together(t5: Path) -> None:
    asked = Asked(t5)
    asked.lane.budget_tokens = 40
    texts = ("What?", "Who goes?", "x", "a b c d e f g h i j", "def add(a, b):", "Zwölf Boxkämpfer", "one, two and three", "return a + b")
    for n, text in enumerate(texts):
        asked.ask(str(n), text, max_tokens=10)
    asked.step()
    assert asked.engine.running == 8
    assert asked.engine.cancel("0")  # while some are read and some are not
    asked.finish()
    for n, text in enumerate(texts[1:], start=1):
        assert asked.tokens(str(n)) == generated(t5, text, 10)
    assert asked.engine.forward_passes < 2 * 10


@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_a_seeded_answer_is_the_same_whatever_shares_its_micro_batch(t5: Path, mode: Mode) -> None:
    how: dict[str, Any] = {"max_tokens": 20, "temperature": 1.5, "seed": 11, "top_p": 0.9, "repetition_penalty": 1.2}
    alone, crowded = Asked(t5, mode), Asked(t5, mode)
    alone.ask("a", TEXTS[2], **how)
    crowded.ask("x", TEXTS[4], max_tokens=5, temperature=1.0, seed=1)
    crowded.ask("a", TEXTS[2], **how)
    crowded.ask("b", TEXTS[2], **(how | {"seed": 12}))
    crowded.ask("y", TEXTS[3], max_tokens=30)
    for asked in (alone, crowded):
        asked.finish()
    assert alone.tokens("a") == crowded.tokens("a")
    assert crowded.tokens("b") != crowded.tokens("a")
    assert alone.completion("a").logprob_mean == pytest.approx(crowded.completion("a").logprob_mean, abs=1e-4)


def test_fast_answers_alike_alone_and_together(t5: Path) -> None:
    alone, together = Asked(t5, "fast"), Asked(t5, "fast")
    for n, text in enumerate(TEXTS):
        alone.ask(str(n), text, max_tokens=6 + 3 * n)
        alone.finish()
        together.ask(str(n), text, max_tokens=6 + 3 * n)
    together.finish()
    assert [alone.tokens(str(n)) for n in range(6)] == [together.tokens(str(n)) for n in range(6)]
    assert together.loaded.bytes < Asked(t5).loaded.bytes / 3


def test_an_answer_is_streamed_and_ends_before_its_stop_string(t5: Path) -> None:
    whole = plain(t5 / "torch")[1].decode(generated(t5, TEXTS[1], 24), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    stop = whole[len(whole) // 2 : len(whole) // 2 + 2]
    asked = Asked(t5)
    asked.ask("a", TEXTS[1], stream=True, max_tokens=24, stop=(stop,))
    asked.finish()
    got = asked.completion("a")
    assert (got.text, got.finish_reason) == (whole[: whole.index(stop)], "stop")
    assert "".join(e.text for e in asked.events if isinstance(e, Delta)) == got.text
    assert [type(e) for e in asked.events if not isinstance(e, Delta)] == [First, Done]


def test_what_it_says_of_itself_and_what_it_refuses(t5: Path) -> None:
    asked = Asked(t5)
    told = asked.loaded
    assert (told.capabilities, told.context, told.family, told.cache_bytes_per_token) == (("seq2seq",), 128, "t5", 2 * 2 * 4 * 8 * 4)
    assert told.bytes == sum(path.stat().st_size for path in (t5 / "exact").glob("*.bin"))
    with pytest.raises(PromptTooLong, match="reads 128"):
        asked.ask("a", "a b c " * 200)
    with pytest.raises(BadInput, match="typed output"):
        asked.ask("a", "x", form=ChoiceForm(options=("a", "b")))
    with pytest.raises(BadInput, match="log-probabilities"):
        asked.ask("a", "x", logprobs=2)
    with pytest.raises(BadInput, match="cannot be asked for embedding"):
        asked.engine.admit(Generate(id="a", checkpoint="tiny", messages=user("x"), want="embedding"))
    with pytest.raises(Unavailable):
        asked.engine.admit(Generate(id="a", checkpoint="other", messages=user("x")))
    asked.ask("a", "x", max_tokens=3)
    with pytest.raises(BadInput, match="in flight already"):
        asked.ask("a", "x")


def test_cancelling_abandoning_and_unloading_give_everything_back(t5: Path) -> None:
    asked = Asked(t5, max_rows=2)
    for n in range(4):
        asked.ask(str(n), TEXTS[n], max_tokens=30)
    asked.step(3)
    assert (asked.engine.running, asked.engine.waiting) == (2, 2)
    assert asked.engine.held_bytes == asked.loaded.bytes + asked.lane.cache_bytes > asked.loaded.bytes
    assert asked.engine.cancel("0")
    assert asked.engine.cancel("3")
    assert not asked.engine.cancel("3")
    passes = asked.engine.forward_passes
    failed = [(e.id, e.cause) for e in asked.engine.unload("tiny") if isinstance(e, Failed)]
    assert sorted(failed) == [("1", "throttled"), ("2", "throttled")]
    assert (asked.engine.resident, asked.engine.held_bytes, asked.engine.busy, asked.engine.forward_passes) == ({}, 0, False, passes)
    again = Asked(t5)
    again.ask("a", "x", max_tokens=9)
    again.step()
    assert again.engine.abandon() == ["a"]
    assert (again.engine.busy, again.lane.cache_bytes) == (False, 0)


def test_a_micro_batch_that_fits_nowhere_fails_and_the_others_wait_for_room(t5: Path) -> None:
    roomy = Asked(t5)
    asked = Asked(t5, memory=roomy.loaded.bytes + 60 * roomy.loaded.cache_bytes_per_token)
    asked.ask("too large", TEXTS[2], max_tokens=100)
    for n in range(3):
        asked.ask(str(n), "What?", max_tokens=40)
    most = 0
    while asked.engine.busy:
        asked.step()
        most = max(most, asked.engine.running)
    assert [(e.id, e.cause) for e in asked.events if isinstance(e, Failed)] == [("too large", "out_of_memory")]
    assert most == 1
    assert asked.tokens("2") == generated(t5, "What?", 40)
    with pytest.raises(BadInput, match=r"needs 0 MB and a cache beside them"):
        Asked(t5, memory=1000)


def test_it_is_advanced_beside_a_decoder(t5: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    decoder = exported(tmp_path_factory, "llama")
    asked = Asked(t5)
    asked.engine.load(Load(checkpoint="decoder", folder=str(decoder / "exact"), engine="openvino"))
    asked.engine.admit(Generate(id="decoded", checkpoint="decoder", messages=user("def add(a"), sampling=Sampling(max_tokens=10)))
    asked.ask("translated", TEXTS[2], max_tokens=10)
    asked.step(3)
    assert {e.id for e in asked.events if isinstance(e, First)} == {"decoded", "translated"}
    asked.finish()
    assert asked.tokens("translated") == generated(t5, TEXTS[2], 10)
    assert set(asked.engine.resident) == {"tiny", "decoder"}


@pytest.mark.parametrize(("part", "what"), [("encoder", "self-test|does not make"), ("decoder", "self-test|does not make")])
def test_a_form_whose_files_are_cut_short_is_not_served(t5: Path, tmp_path: Path, part: str, what: str) -> None:
    folder = Path(shutil.copytree(t5 / "exact", tmp_path / "exact"))
    weights = folder / f"openvino_{part}_model.bin"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    with pytest.raises(Damaged, match=what):
        Asked(tmp_path)


def test_a_form_whose_batch_is_wrong_is_not_served(t5: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from symposia_worker.engines.seq2seq import MicroBatch

    right = MicroBatch.next_logits
    monkeypatch.setattr(MicroBatch, "next_logits", lambda self: right(self).roll(1, dims=-1))
    with pytest.raises(Damaged, match="self-test"):
        Asked(t5)


def test_a_form_without_a_start_token_or_a_decoder_is_refused(t5: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(t5 / "exact", tmp_path / "exact"))
    edit_config(folder, decoder_start_token_id=None)
    told = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps({k: v for k, v in told.items() if k != "decoder_start_token_id"}))
    with pytest.raises(BadInput, match="names no token its answers begin with"):
        Asked(tmp_path)
    (folder / "openvino_decoder_model.xml").unlink()
    with pytest.raises(BadInput, match="has no exported form"):
        Asked(tmp_path)
