"""A torch engine with one checkpoint, asked step by step, and what plain transformers says to the same."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from symposia_shared.prompts import Message, Sampling, user
from symposia_shared.turns import Completion, Want
from symposia_worker.engines.protocol import Done, Event, Failed, Generate, Load
from symposia_worker.engines.torch import TorchEngine

ROOMY = 1 << 30


class Stepped:
    """An engine asked step by step, and what came of the requests to it."""

    def __init__(self, engine: Any, load: Load) -> None:
        self.engine, self.loaded = engine, engine.load(load)
        self.events: list[Event] = []

    def step(self, times: int = 1) -> None:
        for _ in range(times):
            self.events += self.engine.step()

    def finish(self) -> None:
        while self.engine.busy:
            self.step()

    def completion(self, request_id: str) -> Completion:
        (done,) = [e for e in self.events if isinstance(e, Done) and e.id == request_id]
        return done.completion

    def failure(self, request_id: str) -> Failed:
        (failed,) = [e for e in self.events if isinstance(e, Failed) and e.id == request_id]
        return failed


class Asked(Stepped):
    """A torch engine with one checkpoint."""

    def __init__(self, folder: Path, *, memory: int = ROOMY, max_rows: int = 4, chunk: int = 24, device: str = "cpu") -> None:
        super().__init__(TorchEngine(device, memory, max_rows=max_rows), Load(checkpoint="tiny", folder=str(folder)))
        self.batch.chunk_tokens = chunk

    @property
    def batch(self) -> Any:
        return self.engine._residents["tiny"].batch

    def ask(self, request_id: str, prompt: str | tuple[Message, ...], *, stream: bool = False, want: Want = "completion", raw: bool = False,
            suffix: str | None = None, **sampling: object) -> None:
        messages = user(prompt) if isinstance(prompt, str) else prompt
        self.engine.admit(Generate(id=request_id, checkpoint="tiny", messages=messages, sampling=Sampling(**sampling), stream=stream, want=want,
                                   raw=raw, suffix=suffix))


@cache
def plain(folder: Path) -> tuple[Any, Any]:
    """(model, tokenizer) as transformers loads them."""
    return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


@cache
def one_by_one(folder: Path, prompt: str, most: int) -> tuple[str, int]:
    """(text, tokens) that plain ``generate`` gives."""
    model, tokenizer = plain(folder)
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=most, do_sample=False, pad_token_id=0)[0, ids.shape[1] :]
    return tokenizer.decode(out, skip_special_tokens=True, clean_up_tokenization_spaces=False), len(out)
