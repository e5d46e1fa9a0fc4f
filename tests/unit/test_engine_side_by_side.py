"""An encoder, an encoder-decoder and a decoder in one engine process, over its socket."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from catalogue_tiny import EIGHTEEN, plain
from symposia_shared.prompts import ChoiceForm, Sampling, user
from symposia_shared.turns import Abstention, Completion, Turn
from symposia_worker.engines.client import EngineProcess
from tiny import tiny_checkpoint

PATIENCE_S = 60.0
TEXTS = ("x", "def add(a, b):\n    return a + b", "The quick brown fox jumps over the lazy dog. " * 2, "What?")
KINDS = ("encoder", "t5", "decoder")


class Pool:
    """An engine process with one checkpoint of each kind, and all that it told."""

    def __init__(self, folders: dict[str, Path]) -> None:
        self.deaths: list[list[str]] = []
        self.replies: dict[str, list[Completion | Abstention]] = {}
        self.engine = EngineProcess("cpu", 1 << 30, on_death=self.deaths.append)
        self.engine.start()
        self.capabilities = {name: self.engine.load(name, str(folders[name])).capabilities for name in KINDS}

    def ask(self, turn_id: str, model: str, *texts: str, want: Any = "completion", **sampling: Any) -> None:
        turn = Turn(member="m", model=model, messages=tuple(m for t in texts for m in user(t)), want=want, sampling=Sampling(**sampling))
        self.replies[turn_id] = []
        self.engine.generate(turn_id, turn, None, self.replies[turn_id].append)

    def reply(self, turn_id: str) -> Completion | Abstention:
        until(lambda: bool(self.replies[turn_id]))
        (reply,) = self.replies[turn_id]
        return reply

    def answer(self, turn_id: str) -> Completion:
        reply = self.reply(turn_id)
        assert isinstance(reply, Completion), reply
        return reply

    def refusal(self, model: str, *texts: str, **asked: Any) -> str:
        turn_id = f"refused {len(self.replies)}"
        self.ask(turn_id, model, *texts, **asked)
        reply = self.reply(turn_id)
        assert isinstance(reply, Abstention), reply
        return f"{reply.cause}: {reply.message}"


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    tiny = {c.slug: c for c in EIGHTEEN}
    made = {name: plain(tiny[slug], tmp_path_factory.mktemp(name))[0] for name, slug in (("encoder", "unixcoder-base"), ("t5", "codet5-large-ntp-py"))}
    return made | {"decoder": tiny_checkpoint(tmp_path_factory.mktemp("decoder"), "llama", eos_token_id=None, max_position_embeddings=4096)}


@pytest.fixture(scope="module")
def pool(folders: dict[str, Path]) -> Iterator[Pool]:
    pool = Pool(folders)
    yield pool
    pool.engine.stop()


@torch.inference_mode()
def greedy(folder: Path, kind: str, prompt: str, most: int) -> str:
    """What plain ``generate`` writes."""
    made = {"t5": transformers.AutoModelForSeq2SeqLM, "decoder": transformers.AutoModelForCausalLM}[kind].from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    out = made.generate(ids, max_new_tokens=most, do_sample=False, attention_mask=torch.ones_like(ids))
    new = out[0, 1:] if kind == "t5" else out[0, ids.shape[1] :]
    written: str = tokenizer.decode(new, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return written


@torch.inference_mode()
def mean(folder: Path, text: str) -> torch.Tensor:
    """UniXcoder's vector: the mean of its states, its mode in front."""
    tokenizer, model = transformers.AutoTokenizer.from_pretrained(folder), transformers.AutoModel.from_pretrained(folder).eval()
    ids = [0, 5, 2, *tokenizer(text, add_special_tokens=False)["input_ids"], 2]
    states = model(input_ids=torch.tensor([ids])).last_hidden_state[0].mean(0)
    return torch.nn.functional.normalize(states, dim=0)


def ask_all(pool: Pool, mark: str) -> None:
    for n, text in enumerate(TEXTS):
        pool.ask(f"{mark} t5 {n}", "t5", text, max_tokens=8 + n)
        pool.ask(f"{mark} decoder {n}", "decoder", text, max_tokens=8 + n)
    pool.ask(f"{mark} encoder", "encoder", *TEXTS, want="embedding")


def test_three_kinds_side_by_side_give_what_transformers_gives_one_by_one(pool: Pool, folders: dict[str, Path]) -> None:
    assert [pool.capabilities[name][0] for name in KINDS] == ["embed", "seq2seq", "generate"]
    ask_all(pool, "first")
    for n, text in enumerate(TEXTS):
        for kind in ("t5", "decoder"):
            assert pool.answer(f"first {kind} {n}").text == greedy(folders[kind], kind, text, 8 + n)
    vectors = pool.answer("first encoder").vectors
    assert vectors is not None
    for text, vector in zip(TEXTS, vectors, strict=True):
        assert torch.allclose(torch.tensor(vector), mean(folders["encoder"], text), atol=1e-5)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the files a process has mapped")
def test_the_process_has_loaded_neither_scikit_learn_nor_scipy(pool: Pool) -> None:
    mapped = Path(f"/proc/{pool.engine.pid}/maps").read_text()
    assert "/site-packages/torch/" in mapped
    assert not [part for part in ("/site-packages/sklearn/", "/site-packages/scipy/") if part in mapped]


def test_what_a_kind_cannot_do_is_refused_by_name_and_the_others_go_on(pool: Pool) -> None:
    pool.ask("goes on", "decoder", "def add(a", max_tokens=40)
    assert "t5 is an encoder-decoder (t5): it answers prompts, and cannot be asked for score" in pool.refusal("t5", "x", want="score")
    assert "cannot be asked for embedding" in pool.refusal("t5", "x", want="embedding")
    for sampling in ({"form": ChoiceForm(options=("a", "b"))}, {"logprobs": 0}):
        assert "typed output and log-probabilities by token are not offered" in pool.refusal("t5", "x", **sampling)
    assert pool.refusal("t5", "a b c " * 200).startswith("prompt_too_long: ")
    for want in ("completion", "score"):
        assert "encoder is an encoder (roberta): it embeds texts and writes none" in pool.refusal("encoder", "x", want=want)
    too_long = pool.refusal("encoder", "x", "a b c " * 200, want="embedding")
    assert too_long.startswith("prompt_too_long: text 1 has ")
    assert "a text is not cut" in too_long
    assert "makes no vectors" in pool.refusal("decoder", "x", want="embedding")
    assert pool.answer("goes on").usage.completion_tokens == 40


def test_a_cancelled_turn_of_each_kind_abstains_and_leaves_the_others(pool: Pool) -> None:
    pool.ask("long decoder", "decoder", "def", max_tokens=4000)
    pool.ask("stays", "t5", "What?", max_tokens=20)
    pool.ask("many texts", "encoder", *[f"{n} " + "word " * (n % 20) for n in range(400)], want="embedding")
    pool.engine.cancel("many texts")
    pool.ask("long t5", "t5", TEXTS[2], max_tokens=120)
    pool.engine.cancel("long t5")
    pool.engine.cancel("long decoder")
    for name in ("long t5", "many texts", "long decoder"):
        reply = pool.reply(name)
        assert isinstance(reply, Abstention)
        assert reply.cause == "cancelled"
    assert pool.answer("stays").usage.completion_tokens > 0


def test_an_unloaded_t5_hands_its_turns_back_and_the_others_go_on(pool: Pool, folders: dict[str, Path]) -> None:
    pool.ask("beside", "decoder", "def", max_tokens=60)
    for n in range(60):
        pool.ask(f"caught {n}", "t5", TEXTS[2], max_tokens=120)
    pool.engine.unload("t5")
    replies = [pool.reply(f"caught {n}") for n in range(60)]
    assert {r.cause for r in replies if isinstance(r, Abstention)} == {"throttled"}
    until(lambda: pool.engine.pulse is not None and set(pool.engine.pulse.resident) == {"encoder", "decoder"})
    assert pool.answer("beside").usage.completion_tokens == 60
    pool.engine.load("t5", str(folders["t5"]))
    pool.ask("again", "t5", "What?", max_tokens=6)
    assert pool.answer("again").text == greedy(folders["t5"], "t5", "What?", 6)


def test_a_killed_process_hands_every_kinds_turns_back_and_holds_all_three_again(pool: Pool) -> None:
    ask_all(pool, "before")
    before = {name: pool.answer(name) for name in list(pool.replies) if name.startswith("before")}
    pool.ask("lost", "decoder", "def", max_tokens=4000)
    pool.engine.kill()
    until(lambda: bool(pool.deaths))
    assert pool.deaths == [["lost"]]
    assert pool.replies["lost"] == []
    pool.engine.restart()
    ask_all(pool, "after")
    for name, was in before.items():
        now = pool.answer(name.replace("before", "after"))
        assert (now.text, now.vectors, now.usage) == (was.text, was.vectors, was.usage)
