"""Choosing the next token of each row: every row by its own sampling, its own form and its own generator."""

from __future__ import annotations

import math
from collections.abc import Sequence as Rows

import torch

from symposia_shared.prompts import Sampling
from symposia_worker.engines.grammar import Walk
from symposia_worker.engines.scoring import likeliest
from symposia_worker.engines.sequence import Choice

#: candidates looked at for top-p before all tokens are: sorting a whole vocabulary takes longer than a row's share of a forward
_HEAD = 256


def generator_of(sampling: Sampling) -> torch.Generator:
    """A request's own source of chance; without a seed, from the system's."""
    generator = torch.Generator()
    if sampling.seed is None:
        generator.seed()
    else:
        generator.manual_seed(sampling.seed)
    return generator


def choose(logits: torch.Tensor, samplings: Rows[Sampling], histories: Rows[Rows[int]], generators: Rows[torch.Generator],
           walks: Rows[Walk | None] = ()) -> list[Choice]:
    """One token per row of ``logits`` (rows, vocabulary), float32. Greedy rows draw nothing; the others draw once.

    A row's form comes first, then the order of the filters is transformers': penalty, temperature, top-k, top-p, min-p.
    """
    normal = logits.logsumexp(dim=-1)
    tokens = logits.argmax(dim=-1)
    forms = walks or [None] * len(samplings)
    scores = {row: _scores(logits[row], samplings[row], histories[row], forms[row]) for row in range(len(samplings))
              if forms[row] is not None or samplings[row].repetition_penalty != 1.0}
    drawn = [row for row, sampling in enumerate(samplings) if sampling.temperature > 0]
    for row in scores.keys() - drawn:
        tokens[row] = scores[row].argmax()
    if drawn:
        tokens[drawn] = _drawn(torch.stack([scores.get(row, logits[row]) for row in drawn]), [samplings[row] for row in drawn],
                               [generators[row] for row in drawn])
    chosen = (logits.gather(1, tokens[:, None]).squeeze(1) - normal).tolist()
    tops = {row: likeliest(logits[row : row + 1], normal[row : row + 1], number)[0]
            for row, sampling in enumerate(samplings) if (number := sampling.logprobs)}
    return [Choice(t, p, tops.get(row, ())) for row, (t, p) in enumerate(zip(tokens.tolist(), chosen, strict=True))]


def penalised(scores: torch.Tensor, penalty: float, history: Rows[int]) -> torch.Tensor:
    """Scores of tokens already in prompt or completion made smaller (Keskar et al. 2019, arXiv:1909.05858)."""
    seen = torch.tensor(sorted({token for token in history if token < len(scores)}), device=scores.device)
    old = scores[seen]
    return scores.index_copy(0, seen, torch.where(old < 0, old * penalty, old / penalty))


def allowed(mask: bytes, vocabulary: int) -> torch.Tensor:
    """The tokens a form allows, (vocabulary), of their bits."""
    packed = torch.frombuffer(bytearray(mask), dtype=torch.uint8)
    bits = (packed[:, None] >> torch.arange(8, dtype=torch.uint8)) & 1
    return bits.view(-1)[:vocabulary].bool()


def filtered(scores: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Scores (vocabulary) outside top-k, top-p and min-p set to -inf; the best one always stays."""
    if 0 < sampling.top_k < len(scores):
        scores = scores.masked_fill(scores < scores.topk(sampling.top_k).values[-1], -math.inf)
    if sampling.top_p < 1.0:
        scores = scores.index_fill(0, _outside_top_p(scores.softmax(-1), sampling.top_p), -math.inf)
    if sampling.min_p > 0.0:
        scores = scores.masked_fill(scores < scores.max() + math.log(sampling.min_p), -math.inf)
    return scores


def _outside_top_p(shares: torch.Tensor, top_p: float) -> torch.Tensor:
    """The tokens beyond the likeliest ones that have ``top_p`` together (Holtzman et al. 2020, arXiv:1904.09751)."""
    ordered, places = shares.topk(min(_HEAD, len(shares)))
    if float(ordered.sum()) < top_p:
        ordered, places = shares.sort(descending=True)
    kept = places[ordered.cumsum(-1) - ordered < top_p]
    outside = torch.ones(len(shares), dtype=torch.bool, device=shares.device)
    outside[kept] = False
    return outside.nonzero().squeeze(1)


def _scores(logits: torch.Tensor, sampling: Sampling, history: Rows[int], walk: Walk | None) -> torch.Tensor:
    """A row's logits (vocabulary) by its form and its penalty."""
    if walk is not None:
        logits = logits.masked_fill(~allowed(walk.mask(), len(logits)).to(logits.device), -math.inf)
    if sampling.repetition_penalty != 1.0:
        logits = penalised(logits, sampling.repetition_penalty, history)
    return logits


def _drawn(scores: torch.Tensor, samplings: Rows[Sampling], generators: Rows[torch.Generator]) -> torch.Tensor:
    """A token for each row of ``scores`` (rows, vocabulary), by inversion of its distribution's sums."""
    # one uniform number a token, whatever is filtered: a row's draws depend on its seed alone
    uniforms = torch.stack([torch.rand(1, generator=g, dtype=torch.float64) for g in generators]).to(scores.device)
    scores = scores / torch.tensor([s.temperature for s in samplings], device=scores.device)[:, None]
    for row, sampling in enumerate(samplings):
        if sampling.top_k or sampling.top_p < 1.0 or sampling.min_p:
            scores[row] = filtered(scores[row], sampling)
    sums = scores.double().softmax(-1).cumsum(-1)
    best = scores.argmax(-1)
    drawn = torch.searchsorted(sums, uniforms * sums[:, -1:], right=True).squeeze(1).clamp_max(scores.shape[1] - 1)
    return torch.where(sums[:, -1].isfinite(), drawn, best)
