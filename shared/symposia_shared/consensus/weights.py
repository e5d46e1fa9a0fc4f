"""What a model's vote weighs: its measured accuracy as log-odds, or its size where nothing was measured."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal, Self

from pydantic import Field, model_validator

from symposia_shared.errors import BadInput
from symposia_shared.values import Value

#: accuracies are held to this range, so that no model is infinitely sure or infinitely wrong
LOWEST, HIGHEST = 0.02, 0.98
#: a model that is more often wrong than right still counts a little: votes are never negative
LEAST_WEIGHT = 0.01
#: right and wrong answers, in the proportion of all models together, that every model is credited with at first
PRIOR_ANSWERS = 2.0
#: what a model of unknown size weighs among models of known size, in billions of parameters
UNKNOWN_SIZE_B = 1.0


class Measured(Value):
    """How often a model's answers were right: ``right`` of ``n``."""

    right: int = Field(ge=0)
    n: int = Field(ge=0)

    @model_validator(mode="after")
    def _no_more_right_than_asked(self) -> Self:
        if self.right > self.n:
            raise ValueError(f"{self.right} of {self.n} answers cannot be right.")
        return self


class Weights(Value):
    """Measured accuracies of models, and the weight each gives its model's vote.

    A weight is ln(p / (1 - p)), the best for independent voters (Nitzan and Paroush 1982; Shapley and Grofman 1984),
    with p held to 0.02..0.98 and the weight to at least 0.01. p is shrunk towards the accuracy of all models
    together, as if each had answered two more questions like the average model (m-estimate, m = 2, Cestnik 1990):
    towards the average rather than towards one half, because a model measured on few questions is more likely to be
    like its peers than like a coin.
    """

    method: Literal["log-odds of accuracy, m-estimate 2"] = "log-odds of accuracy, m-estimate 2"
    models: dict[str, Measured]

    @property
    def pooled(self) -> float:
        """Accuracy of all models together; one half where nothing was measured."""
        right, n = sum(m.right for m in self.models.values()), sum(m.n for m in self.models.values())
        return right / n if n else 0.5

    def accuracy(self, model: str) -> float:
        """The shrunk accuracy of ``model``, 0 to 1; that of all models together where it was never measured."""
        seen = self.models.get(model, Measured(right=0, n=0))
        return (seen.right + PRIOR_ANSWERS * self.pooled) / (seen.n + PRIOR_ANSWERS)

    def weight(self, model: str) -> float:
        """What a vote of ``model`` weighs, 0.01 to 3.89."""
        p = min(HIGHEST, max(LOWEST, self.accuracy(model)))
        return max(LEAST_WEIGHT, math.log(p / (1.0 - p)))


def fit(marked: Iterable[tuple[str, bool]]) -> Weights:
    """Weights from (model, was its answer right) pairs, in any order. Raises BadInput where there are none."""
    right: dict[str, int] = {}
    asked: dict[str, int] = {}
    for model, correct in marked:
        asked[model] = asked.get(model, 0) + 1
        right[model] = right.get(model, 0) + bool(correct)
    if not asked:
        raise BadInput("no weights can be fitted: no answer could be marked.", field="gold", value=0,
                       remedy='Give lines with "answers" and a "gold" answer.')
    return Weights(models={m: Measured(right=right[m], n=asked[m]) for m in sorted(asked)})


def size_weight(params_b: float | None) -> float:
    """What a vote weighs by its model's size alone: its billions of parameters, 1 where they are not known.

    Measured on public data this loses to a plain majority; it stands in only until accuracies are known.
    """
    return max(LEAST_WEIGHT, params_b) if params_b is not None and math.isfinite(params_b) else UNKNOWN_SIZE_B
