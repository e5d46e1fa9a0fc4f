"""Choosing the next token of each row: every row by its own sampling and its own generator."""

from __future__ import annotations

import math
from collections.abc import Sequence as Rows
from dataclasses import dataclass

import torch

from symposia_shared.prompts import Sampling


@dataclass(frozen=True, slots=True)
class Choice:
    """A token, and its natural log-probability by the model's own distribution (before penalties and temperature)."""

    token: int
    logprob: float

    @property
    def sound(self) -> bool:
        """False where the model gave no numbers to choose by."""
        return math.isfinite(self.logprob)


def generator_of(sampling: Sampling) -> torch.Generator:
    """A request's own source of chance; without a seed, from the system's."""
    generator = torch.Generator()
    if sampling.seed is None:
        generator.seed()
    else:
        generator.manual_seed(sampling.seed)
    return generator


def choose(logits: torch.Tensor, samplings: Rows[Sampling], histories: Rows[Rows[int]], generators: Rows[torch.Generator]) -> list[Choice]:
    """One token per row of ``logits`` (rows, vocabulary), float32. Greedy rows draw nothing; the others draw once."""
    normal = logits.logsumexp(dim=-1)
    tokens = logits.argmax(dim=-1)
    for row, sampling in enumerate(samplings):
        if sampling.temperature > 0 or sampling.repetition_penalty != 1.0:
            tokens[row] = _draw(logits[row], sampling, histories[row], generators[row])
    chosen = logits.gather(1, tokens[:, None]).squeeze(1) - normal
    return [Choice(t, p) for t, p in zip(tokens.tolist(), chosen.tolist(), strict=True)]


def _draw(scores: torch.Tensor, sampling: Sampling, history: Rows[int], generator: torch.Generator) -> int:
    """The token of one row. The order of the filters is transformers': penalty, temperature, top-k, top-p, min-p."""
    if sampling.repetition_penalty != 1.0:
        scores = penalised(scores, sampling.repetition_penalty, history)
    if sampling.temperature == 0:
        return int(scores.argmax())
    # one uniform number a token, whatever is filtered: a row's draws depend on its seed alone
    uniform = float(torch.rand((), generator=generator, dtype=torch.float64))
    cumulative = filtered(scores / sampling.temperature, sampling).double().softmax(-1).cumsum(-1)
    if not math.isfinite(float(cumulative[-1])):
        return int(scores.argmax())
    return int(torch.searchsorted(cumulative, uniform * cumulative[-1], right=True).clamp_max(len(scores) - 1))


def penalised(scores: torch.Tensor, penalty: float, history: Rows[int]) -> torch.Tensor:
    """Scores of tokens already in prompt or completion made smaller (Keskar et al. 2019, arXiv:1909.05858)."""
    seen = torch.tensor(sorted(set(history)), device=scores.device)
    old = scores[seen]
    return scores.index_copy(0, seen, torch.where(old < 0, old * penalty, old / penalty))


def filtered(scores: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Scores outside top-k, top-p and min-p set to -inf; the best one always stays."""
    if 0 < sampling.top_k < len(scores):
        scores = scores.masked_fill(scores < scores.topk(sampling.top_k).values[-1], -math.inf)
    if sampling.top_p < 1.0:
        ordered, places = scores.softmax(-1).sort(descending=True)
        outside = ordered.cumsum(-1) - ordered >= sampling.top_p
        scores = scores.index_fill(0, places[outside], -math.inf)
    if sampling.min_p > 0.0:
        scores = scores.masked_fill(scores < scores.max() + math.log(sampling.min_p), -math.inf)
    return scores
