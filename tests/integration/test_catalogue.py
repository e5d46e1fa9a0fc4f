"""Each of the eighteen checkpoints in miniature: made as published, stored in a real S3, pulled, verified, loaded, asked, unloaded."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import transformers

from catalogue_tiny import EIGHTEEN, TinyCheckpoint
from s3 import running_s3
from symposia_shared import catalogue
from symposia_shared.prompts import Sampling, user
from symposia_shared.store import Store
from symposia_shared.turns import Completion, Turn
from symposia_worker.engines.batch import Batch
from symposia_worker.engines.client import EngineProcess
from symposia_worker.engines.loading import load_model
from symposia_worker.engines.protocol import Done, Generate, Load, Mode
from symposia_worker.engines.seq2seq import Seq2SeqLane
from symposia_worker.engines.torch import TorchEngine
from symposia_worker.families.forms import MOST_LOSS
from symposia_worker.models import forms, ingest, trial
from symposia_worker.models.cache import ModelCache
from symposia_worker.models.manifest import Manifest
from symposia_worker.models.seats import EngineSeat, seat_of, stored_checkpoint
from symposia_worker.models.store import ModelStore
from trials import tried_here

PROMPTS = ("def add(a", "The quick brown fox jumps over the lazy dog. Debate, then vote.", "What?", "class Stack:\n        def push(self")
#: these are tried by a process of their own, as all are outside tests; importing torch for each of the eighteen would take minutes
IN_A_PROCESS = ("codegen25-7b-mono", "codebert-base")
#: what is put to the model for a hole between "a(" and ")b"
HOLES = {"codegen25-7b-mono": "a(<mask_1>)b<|endoftext|><sep><mask_1>", "incoder-1b": "a(<|mask:0|>)b<|mask:1|><|mask:0|>",
         "stablelm-2-1_6b": "<|fim_prefix|>a(<|fim_suffix|>)b<|fim_middle|>"}

every = pytest.mark.parametrize("stored", EIGHTEEN, ids=[c.slug for c in EIGHTEEN], indirect=True)
generators = pytest.mark.parametrize("stored", [c for c in EIGHTEEN if c.kind == "generate"], ids=lambda c: c.slug, indirect=True)


@dataclass
class Stored:
    """A checkpoint in the store and in the cache."""

    checkpoint: TinyCheckpoint
    manifest: Manifest
    folder: Path
    #: what it was made of
    model: Any

    @cached_property
    def tokenizer(self) -> Any:
        return transformers.AutoTokenizer.from_pretrained(self.folder)

    @cached_property
    def ends(self) -> frozenset[int]:
        """The tokens that end its answers."""
        return load_model("tiny", self.folder, dtype="float32", device="cpu", room_bytes=1e9).renderer.stop_ids

    @cached_property
    def plain(self) -> Any:
        """As transformers loads it."""
        made = {"generate": transformers.AutoModelForCausalLM, "seq2seq": transformers.AutoModelForSeq2SeqLM}
        return made.get(self.checkpoint.kind, transformers.AutoModel).from_pretrained(self.folder).eval()


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelStore]:
    with running_s3(tmp_path_factory.mktemp("s3")) as settings:
        yield ModelStore(Store(settings))


@pytest.fixture(scope="module")
def shelf() -> dict[str, Stored]:
    return {}


@pytest.fixture
def stored(request: pytest.FixtureRequest, models: ModelStore, shelf: dict[str, Stored], tmp_path_factory: pytest.TempPathFactory,
           monkeypatch: pytest.MonkeyPatch) -> Stored:
    checkpoint: TinyCheckpoint = request.param
    if checkpoint.slug not in shelf:
        if checkpoint.slug not in IN_A_PROCESS:
            tried_here(monkeypatch)
        # the catalogue knows which of them have a template that a base model should not have
        if "instruct" not in checkpoint.capabilities:
            right = ingest.reasons_to_convert
            monkeypatch.setattr(ingest, "reasons_to_convert", lambda folder, *, without_template: right(folder, without_template=True))
            told = trial.convert
            monkeypatch.setattr(trial, "convert", lambda *given, without_template, untrained: told(*given, without_template=True, untrained=untrained))
        root = tmp_path_factory.mktemp(checkpoint.slug)
        model = checkpoint.make(root / "published")
        manifest = ingest.add_folder(models, root / "published", f"tiny/{checkpoint.slug}", untrained=True)
        shelf[checkpoint.slug] = Stored(checkpoint, manifest, ModelCache(root / "cache").fetch(models, manifest.id), model)
    return shelf[checkpoint.slug]


class Asked:
    """An engine with the checkpoint, the tokens of every sequence it decoded, and what came of the requests."""

    def __init__(self, stored: Stored) -> None:
        self.engine = TorchEngine("cpu", 1 << 30, max_rows=3)
        self.told = self.engine.load(Load(checkpoint="tiny", folder=str(stored.folder)))
        self.done: dict[str, Completion] = {}
        self._sequences: dict[str, Any] = {}

    def ask(self, request_id: str, prompt: str, **fields: Any) -> None:
        self.engine.admit(Generate(id=request_id, checkpoint="tiny", messages=user(prompt), **fields))
        self._note()

    def step(self) -> None:
        self.done |= {e.id: e.completion for e in self.engine.step() if isinstance(e, Done)}
        self._note()

    def finish(self) -> None:
        while self.engine.busy:
            self.step()

    def tokens(self, request_id: str) -> list[int]:
        sequence = self._sequences[request_id]
        return list(sequence.ids[len(sequence.ids) - sequence.new_tokens :])

    def unload(self) -> None:
        self.engine.unload("tiny")
        assert self.engine.resident == {}

    def _note(self) -> None:
        batch = self.engine._residents["tiny"].batch
        if isinstance(batch, Seq2SeqLane):
            self._sequences |= {t.sequence.id: t.sequence for t in (*batch.waiting, *(t for b in batch._batches for t in b.rows))}
        elif isinstance(batch, Batch):
            self._sequences |= {s.id: s for s in batch}


def test_the_eighteen_are_those_of_the_catalogue_and_of_the_same_type() -> None:
    assert len({c.stands_for for c in EIGHTEEN}) == 18
    for c in EIGHTEEN:
        entry = catalogue.entry(c.stands_for)
        assert entry.capabilities[0] == c.kind
        assert ("instruct" in entry.capabilities) == ("instruct" in c.capabilities)


@every
def test_it_is_stored_plainly_and_comes_back_verified(stored: Stored, models: ModelStore) -> None:
    facts, entry = stored.manifest.facts, catalogue.entry(stored.checkpoint.stands_for)
    assert models.verify(stored.manifest.id) == stored.manifest
    assert facts.capabilities == stored.checkpoint.capabilities
    assert (facts.model_type, facts.architecture, facts.context) == (entry.model_type, entry.architecture, 128)
    names = {f.path for f in stored.manifest.files}
    assert "tokenizer.json" in names
    assert not [n for n in names if n.endswith((".bin", ".py"))]
    assert (facts.bits_per_byte is not None) == (stored.checkpoint.kind == "generate")
    assert facts.vocab == len(stored.tokenizer)


@every
@torch.inference_mode()
def test_what_comes_back_computes_what_the_published_one_did(stored: Stored) -> None:
    ids = torch.tensor([stored.tokenizer(PROMPTS[1])["input_ids"]])
    given = {"input_ids": ids} if stored.checkpoint.kind != "seq2seq" else {"input_ids": ids, "decoder_input_ids": ids}
    mine, theirs = stored.plain(**given), stored.model(**given, output_hidden_states=True)
    if stored.checkpoint.kind == "embed":
        assert torch.equal(mine.last_hidden_state, theirs.hidden_states[-1])
    else:
        assert torch.equal(mine.logits, theirs.logits)


@generators
def test_its_batched_answers_are_those_of_one_by_one_generate(stored: Stored) -> None:
    asked = Asked(stored)
    assert asked.told.capabilities[: len(stored.checkpoint.capabilities)] == stored.checkpoint.capabilities
    assert asked.told.context == 128
    for n, prompt in enumerate(PROMPTS):
        asked.ask(str(n), prompt, sampling=Sampling(max_tokens=8 + 4 * n))
        asked.step()
    asked.finish()
    for n, prompt in enumerate(PROMPTS):
        assert asked.tokens(str(n)) == one_by_one(stored, prompt, 8 + 4 * n)
        assert asked.done[str(n)].usage.completion_tokens == len(asked.tokens(str(n)))
    asked.unload()


def one_by_one(stored: Stored, prompt: str, most: int, *, as_it_is: bool = False) -> list[int]:
    """The tokens plain ``generate`` gives, of the ids the tokenizer has."""
    tokenizer, model = stored.tokenizer, stored.plain
    if "instruct" in stored.checkpoint.capabilities and not as_it_is:
        text = tokenizer.apply_chat_template([{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    else:
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    beyond = list(range(max(tokenizer.get_vocab().values()) + 1, model.config.vocab_size))
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=most, do_sample=False, pad_token_id=0,
                         eos_token_id=sorted(stored.ends), suppress_tokens=beyond or None)
    return list(out[0, ids.shape[1] :].tolist())


@pytest.mark.parametrize("stored", [c for c in EIGHTEEN if "infill" in c.capabilities], ids=lambda c: c.slug, indirect=True)
def test_a_hole_is_put_in_its_publishers_form(stored: Stored) -> None:
    asked = Asked(stored)
    asked.ask("a", "a(", suffix=")b", sampling=Sampling(max_tokens=10))
    asked.finish()
    assert asked.tokens("a") == one_by_one(stored, HOLES[stored.checkpoint.slug], 10, as_it_is=True)


@pytest.mark.parametrize("stored", [c for c in EIGHTEEN if c.kind == "embed"], ids=lambda c: c.slug, indirect=True)
@torch.inference_mode()
def test_its_vectors_are_the_means_of_its_states_whatever_the_batch(stored: Stored) -> None:
    asked = Asked(stored)
    assert asked.told.capabilities == ("embed",)
    asked.engine.admit(Generate(id="a", checkpoint="tiny", messages=tuple(m for p in PROMPTS for m in user(p)), want="embedding"))
    asked.finish()
    vectors = asked.done["a"].vectors
    assert vectors is not None
    for prompt, vector in zip(PROMPTS, vectors, strict=True):
        ids = torch.tensor([encoder_ids(stored, prompt)])
        mean = stored.plain(input_ids=ids).last_hidden_state[0].mean(0)
        assert torch.allclose(torch.tensor(vector), mean / mean.norm(), atol=1e-5)
    asked.unload()


def encoder_ids(stored: Stored, text: str) -> list[int]:
    """The published forms: ``<s> text </s>``, and UniXcoder's with its mode in front."""
    ids = stored.tokenizer(text, add_special_tokens=False)["input_ids"]
    head = [0, 5, 2] if stored.checkpoint.slug == "unixcoder-base" else [0]
    return [*head, *ids, 2]


@pytest.mark.parametrize("stored", [c for c in EIGHTEEN if c.kind == "seq2seq"], ids=lambda c: c.slug, indirect=True)
def test_a_t5_answers_what_one_by_one_generate_answers(stored: Stored) -> None:
    asked = Asked(stored)
    assert asked.told.capabilities == ("seq2seq",)
    for n, prompt in enumerate(PROMPTS):
        asked.ask(str(n), prompt, sampling=Sampling(max_tokens=8 + 4 * n))
        asked.step()
    asked.finish()
    for n, prompt in enumerate(PROMPTS):
        ids = stored.tokenizer(prompt, return_tensors="pt")["input_ids"]
        assert [int(ids[0, 0]), int(ids[0, -1])] == [1, 2]  # <s> ... </s>, as its encoder was trained
        out = stored.plain.generate(ids, max_new_tokens=8 + 4 * n, do_sample=False)[0, 1:]
        assert asked.tokens(str(n)) == out.tolist()
        assert asked.done[str(n)].usage.prompt_tokens == ids.shape[1]
    asked.unload()


@pytest.mark.parametrize("stored", [c for c in EIGHTEEN if c.kind == "seq2seq"], ids=lambda c: c.slug, indirect=True)
@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_a_t5s_form_is_exported_stored_pulled_loaded_asked_and_unloaded(stored: Stored, models: ModelStore, tmp_path: Path, mode: Mode) -> None:
    pytest.importorskip("openvino_genai")
    pytest.importorskip("optimum.intel")
    assert forms.suits(stored.manifest)
    made = forms.make(models, stored.manifest.id, cache=tmp_path / "export", threads=1)
    report = made.report(mode)
    assert report is not None
    assert report.refused is None
    assert report.loss is not None
    assert report.loss <= MOST_LOSS
    seat = seat_of(models, stored.manifest, device="cpu", engine="openvino", mode=mode)
    assert seat == EngineSeat("openvino", mode, forms.form_id(stored.manifest.id, mode))
    form = models.require(seat.stored)
    assert models.verify(form.id) == form
    assert {f.path for f in form.files} >= {f"openvino_{part}_model.{suffix}" for part in ("encoder", "decoder") for suffix in ("xml", "bin")}
    planned = stored_checkpoint(models, stored.manifest.id, device="cpu", engine="auto", mode=mode)
    folder = ModelCache(tmp_path / "cache").fetch(models, seat.stored)

    engine = EngineProcess("cpu", 1 << 28, threads=1)
    engine.start()
    try:
        process, after = psutil.Process(engine.pid), []
        for _ in range(2):
            loaded = engine.load("t5", str(folder), engine="openvino", mode=mode)
            assert (loaded.capabilities, loaded.context, loaded.bytes) == (("seq2seq",), 128, planned.bytes)
            texts = answers(engine, 12)
            engine.unload("t5")
            after.append(process.memory_info().rss)
        assert after[1] - after[0] < 32e6
    finally:
        engine.stop()
    if mode == "exact":
        for prompt, text in zip(PROMPTS, texts, strict=True):
            out = stored.plain.generate(stored.tokenizer(prompt, return_tensors="pt")["input_ids"], max_new_tokens=12, do_sample=False)[0, 1:]
            assert text == stored.tokenizer.decode(out, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def answers(engine: EngineProcess, most: int) -> list[str]:
    """What it writes to PROMPTS, asked at once."""
    replies: dict[int, Any] = {}
    over = threading.Semaphore(0)
    for n, prompt in enumerate(PROMPTS):
        turn = Turn(member="m", model="t5", messages=user(prompt), sampling=Sampling(max_tokens=most))
        engine.generate(str(n), turn, None, lambda reply, n=n: (replies.__setitem__(n, reply), over.release()))  # type: ignore[misc]
    assert all(over.acquire(timeout=60) for _ in PROMPTS)
    assert all(isinstance(reply, Completion) for reply in replies.values()), replies
    return [replies[n].text for n in range(len(PROMPTS))]
