"""What a scripted model finds likely: vectors, scores and choices that repeat, and that follow the words they are asked about."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

from symposia_shared.turns import TokenLogprob

#: length of a scripted vector
DIMENSIONS = 32


def vector(words: Sequence[str]) -> tuple[float, ...]:
    """A vector of length one: each word adds to one place, so that texts that share words lie near each other."""
    sums = [0.0] * DIMENSIONS
    for word in words:
        digest = hashlib.sha256(word.strip().lower().encode()).digest()
        sums[digest[0] % DIMENSIONS] += 1.0 if digest[1] % 2 else -1.0
    if not any(sums):  # words that cancel out
        sums[0] = 1.0
    length = math.sqrt(math.fsum(x * x for x in sums))
    return tuple(round(x / length, 8) for x in sums)


def scored(words: Sequence[str], given: Sequence[str]) -> tuple[TokenLogprob, ...]:
    """Log-probability by word: -0.25 for one that was in the prompt, else -1 and -0.25 for each of its characters."""
    heard = {w.strip().lower() for w in given}
    return tuple(TokenLogprob(token=w, logprob=-0.25 if w.strip().lower() in heard else -1.0 - 0.25 * len(w.strip())) for w in words)


def chances(options: Sequence[str], said: str) -> dict[str, float]:
    """A probability for each option, which add up to one: those that stand in ``said`` are likelier, the longer ones most."""
    weights = {option: math.exp(min(20.0, 2.0 + len(option) / 50) if option.lower() in said.lower() else 0.0) for option in options}
    total = math.fsum(weights.values())
    return {option: weight / total for option, weight in weights.items()}
