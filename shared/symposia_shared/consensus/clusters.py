"""Free texts gathered into clusters of the same meaning, by a likeness that is passed in."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

#: texts are compared by at most this many of their first characters
LONGEST_TEXT = 20_000
_WORD = re.compile(r"\w+")
_ARTICLES = frozenset(("a", "an", "the"))


@dataclass(frozen=True, slots=True)
class Likeness:
    """How alike two texts are: ``of(a, b)`` is 0 to 1 (1 for equal), symmetric; at ``threshold`` they mean the same.

    ``name`` stands in the verdict's rule. An embedding model's likeness is made outside the pure floors: ``of`` then
    looks its vectors up.
    """

    name: str
    threshold: float
    of: Callable[[str, str], float]


def words(text: str) -> frozenset[str]:
    """The words of a text: case folded, articles and punctuation left out."""
    return frozenset(_WORD.findall(text[:LONGEST_TEXT].casefold())) - _ARTICLES


def jaccard(a: str, b: str) -> float:
    """Shared words over all words (Jaccard 1912); 1 where neither has any."""
    left, right = words(a), words(b)
    return len(left & right) / len(left | right) if left or right else 1.0


#: above one half, at which "The capital is Paris." and "The capital is Lyon." would agree
TOKEN_JACCARD = Likeness(name="token Jaccard", threshold=0.6, of=jaccard)


def clusters_of(texts: Sequence[str], likeness: Likeness = TOKEN_JACCARD) -> dict[str, str]:
    """For each distinct text, the text that stands for its cluster: the one most like the others of it.

    Average-linkage clustering of the distinct texts: the two clusters most alike are joined while their mean likeness
    is at least the threshold. Texts are first put in alphabetical order, so their order and number cannot matter.
    """
    distinct = sorted(set(texts))
    alike = {(a, b): likeness.of(a, b) for i, a in enumerate(distinct) for b in distinct[i + 1:]}

    def between(a: str, b: str) -> float:
        return 1.0 if a == b else alike[(a, b) if a < b else (b, a)]

    def linkage(left: Sequence[str], right: Sequence[str]) -> float:
        return math.fsum(between(a, b) for a in left for b in right) / (len(left) * len(right))

    groups = [[t] for t in distinct]
    while len(groups) > 1:
        pairs = [(linkage(groups[i], groups[j]), -i, -j) for i in range(len(groups)) for j in range(i + 1, len(groups))]
        closest, i, j = max(pairs)
        if closest < likeness.threshold:
            break
        groups[-i] = sorted(groups[-i] + groups.pop(-j))
    return {t: _central(group, between) for group in groups for t in group}


def _central(group: Sequence[str], between: Callable[[str, str], float]) -> str:
    return min(group, key=lambda t: (-math.fsum(between(t, other) for other in group), t))
