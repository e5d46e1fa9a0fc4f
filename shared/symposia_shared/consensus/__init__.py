"""Consensus: from several answers to one, or to none. Pure; it counts answers, not texts."""

from symposia_shared.consensus.clusters import TOKEN_JACCARD, Likeness
from symposia_shared.consensus.deciding import count, decide, majority_settled
from symposia_shared.consensus.rules import RULES, ConsensusName
from symposia_shared.consensus.weights import Measured, Weights, fit

__all__ = ["RULES", "TOKEN_JACCARD", "ConsensusName", "Likeness", "Measured", "Weights", "count", "decide", "fit", "majority_settled"]
