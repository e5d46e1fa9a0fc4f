"""How likely a model finds given texts: tokens that are read and never decoded."""

from __future__ import annotations

from collections.abc import Sequence as Ids
from itertools import pairwise, takewhile
from math import exp, fsum

import torch

from symposia_worker.engines.prefixes import Prefix
from symposia_worker.engines.sequence import Choice, Reading


class Scored(Reading):
    """Tokens of which the log-probabilities from place ``begin`` ≥ 1 on are wanted, with the ``top`` likeliest beside each.

    ``ends``: tokens of which one is to follow; the log-probability that one does is then ``end_logprob``.
    """

    def __init__(self, request_id: str, ids: Ids[int], *, begin: int, top: int = 0, ends: frozenset[int] = frozenset(), text: str = "",
                 root: Options | None = None) -> None:
        super().__init__(request_id, ids)
        self.begin, self.top, self.ends, self.text = begin, top, ends, text
        self.prompt_tokens = begin
        self.choices: list[Choice] = []
        self.end_logprob = 0.0
        self._root = root

    @property
    def root(self) -> Reading:
        """The choice whose option it is, or itself."""
        return self if self._root is None else self._root

    @property
    def logprob_sum(self) -> float:
        """Of all its tokens, and of the end where one was to follow."""
        return fsum(c.logprob for c in self.choices) + self.end_logprob

    def read(self, logits: torch.Tensor, first: int, normal: torch.Tensor) -> None:
        """Logits (places, vocabulary) of the places from ``first`` on, and their normalisers (places)."""
        begin = self.begin or 0
        places = range(max(first, begin - 1), min(first + len(logits), len(self.ids) - 1))
        if places:
            rows = logits[places.start - first : places.stop - first]
            ids = torch.tensor(self.ids[places.start + 1 : places.stop + 1], device=logits.device)
            logs = (rows.gather(1, ids[:, None]).squeeze(1) - normal[places.start - first : places.stop - first]).tolist()
            tops = likeliest(rows, normal[places.start - first : places.stop - first], self.top)
            self.choices += [Choice(t, p, top) for t, p, top in zip(ids.tolist(), logs, tops, strict=True)]
        if self.ends and first + len(logits) == len(self.ids):
            self.end_logprob = float(logits[-1, sorted(self.ends)].logsumexp(0) - normal[-1])

    def end(self, at: float) -> None:
        """Everything has been read."""
        self.first_at = self.last_at = at
        if len(self.choices) == len(self.ids) - self.prompt_tokens and all(c.sound for c in self.choices):
            self.finish = "stop"
        else:
            self.fail("bug", "The model gave no finite probabilities for this text. Try another precision (float32), or check its weights.")


class Options(Reading):
    """A choice: what all its options begin with is read once, and each option goes on from a copy of it.

    An option's score is the sum of its tokens' log-probabilities behind what all have in common, not their mean (Brown et al.
    2020, arXiv:2005.14165, §2.4, and the ``acc`` of lm-evaluation-harness do the same): it is the log of the probability that the
    model goes on with just these tokens, so exp(score) over their sum is the probability of each, given that one of them is said.
    The mean would make the probability of a long option larger the more of it is certain. What may follow an option is left open,
    except where one option begins another ("no", "no way"): then, and for all of them, an end must follow (any stop token), since
    else the shorter would also count every time the longer is said.
    """

    def __init__(self, request_id: str, options: Ids[str], ids: Ids[Ids[int]], *, stop_ids: frozenset[int], stream: bool = False) -> None:
        self.options, self.stream = tuple(options), stream
        common = _common([list(x) for x in ids])
        super().__init__(request_id, ids[0][: max(0, common - 1)])  # the last common token is read again: its logits choose the next
        self.prompt_tokens = common
        ends = stop_ids if _one_begins_another(ids) else frozenset()
        self.scored = [Scored(request_id, x, begin=common, ends=ends, root=self) for x in ids]

    def branch(self, prefix: Prefix | None) -> list[Scored]:
        """The options, to be read behind ``prefix``."""
        for scored in self.scored:
            scored.prefix = prefix
        return self.scored

    def settle(self) -> None:
        """Note that an option has ended; the choice ends with the last, or with the first fault."""
        self.fault = next((s.fault for s in self.scored if s.fault), None)
        if not self.fault and all(s.ended for s in self.scored):
            self.first_at = min(s.first_at or 0.0 for s in self.scored)
            self.last_at = max(s.last_at or 0.0 for s in self.scored)
            self.finish = "stop"

    @property
    def probabilities(self) -> dict[str, float]:
        """Of each option, in the order given; they add up to one. Options that are written alike count once."""
        best = max(s.logprob_sum for s in self.scored)
        weights = {option: exp(s.logprob_sum - best) for option, s in zip(self.options, self.scored, strict=True)}
        whole = fsum(weights.values())
        return {option: weight / whole for option, weight in weights.items()}

    @property
    def best(self) -> tuple[str, Scored]:
        """The likeliest option, the first of equals."""
        return max(zip(self.options, self.scored, strict=True), key=lambda pair: pair[1].logprob_sum)


def likeliest(logits: torch.Tensor, normal: torch.Tensor, number: int) -> list[tuple[tuple[int, float], ...]]:
    """For each row of ``logits`` (rows, vocabulary), the ``number`` likeliest tokens with their log-probabilities."""
    if not number:
        return [()] * len(logits)
    values, ids = logits.topk(min(number, logits.shape[1]), dim=-1)
    logs = (values - normal[:, None]).tolist()
    return [tuple(zip(i, p, strict=True)) for i, p in zip(ids.tolist(), logs, strict=True)]


def _common(ids: list[list[int]]) -> int:
    """Tokens that all begin with, short of any one's last."""
    same = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, zip(*ids, strict=False)))
    return min(same, min(map(len, ids)) - 1)


def _one_begins_another(ids: Ids[Ids[int]]) -> bool:
    ordered = sorted({tuple(x) for x in ids})
    return any(b[: len(a)] == a for a, b in pairwise(ordered))
