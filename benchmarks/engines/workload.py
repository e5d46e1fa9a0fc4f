"""Prompts from a file in the OpenAI batch form, rendered once for every contender, and when each arrives."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.engines.wire import Request

#: ours, and texts in the public domain
SHIPPED = Path(__file__).with_name("prompts.jsonl")


@dataclass(frozen=True, slots=True)
class Prompt:
    """One line of a prompts file."""

    id: str
    messages: tuple[dict[str, str], ...]
    max_tokens: int


def prompts_of(path: Path) -> list[Prompt]:
    """The prompts in a file. Raises ValueError naming the line that is none."""
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            raw = json.loads(line)
            body = raw["body"]
            found.append(Prompt(str(raw["custom_id"]), tuple(body["messages"]), int(body.get("max_tokens", 64))))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"line {number} of {path} is no chat request of an OpenAI batch file ({error!r}).") from None
    return found


def requests_of(prompts: Sequence[Prompt], tokenizer: Any, *, cap: int, longest: int, wanted: int, mark: str = "") -> list[Request]:
    """The first ``wanted`` prompts that fit ``longest`` tokens with their answer, answers cut to ``cap`` tokens.

    ``tokenizer``: the checkpoint's, with its chat template. ``mark`` begins each prompt's first message, so that a contender that
    keeps prefixes has not read it before.
    """
    found: list[Request] = []
    for prompt in prompts:
        first, *others = prompt.messages
        marked = [{**first, "content": mark + first["content"]}, *others]
        text = tokenizer.apply_chat_template(marked, tokenize=False, add_generation_prompt=True)
        ids = tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
        new = min(cap, prompt.max_tokens)
        if len(ids) + new <= longest and len(found) < wanted:
            found.append(Request(mark + prompt.id, ids, text, new))
    return found


def all_at_once(requests: Sequence[Request]) -> list[Request]:
    """Every request at 0 s."""
    return [replace(r, at_s=0.0) for r in requests]


def poisson(requests: Sequence[Request], *, rate: float, seed: int) -> list[Request]:
    """Arrivals of a Poisson process of ``rate`` requests a second, the first at 0 s; the same seed gives the same times."""
    draw, at, found = random.Random(seed), 0.0, []
    for r in requests:
        found.append(replace(r, at_s=round(at, 4)))
        at += draw.expovariate(rate)
    return found
