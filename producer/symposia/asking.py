"""The jobs of one turn that the client's short verbs submit, and what it reads from their results. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from symposia_shared.errors import JobFailed
from symposia_shared.jobs import MOST_TEXTS, Embedding, Inference
from symposia_shared.prompts import Message, Sampling
from symposia_shared.results import Result, Score
from symposia_shared.turns import Completion


def question(prompt: str, *, model: str, system: str | None = None, sampling: Sampling | None = None, raw: bool = False,
             suffix: str | None = None) -> Inference:
    """The job of one prompt to one model."""
    fields: dict[str, Any] = {"raw": raw, "suffix": suffix} | ({"sampling": sampling} if sampling is not None else {})
    if system is None:
        return Inference(model=model, prompt=prompt, **fields)
    return Inference(model=model, messages=(Message(role="system", content=system), Message(role="user", content=prompt)), **fields)


def embeddings(texts: Sequence[str], *, model: str) -> list[Embedding]:
    """The jobs that embed ``texts``, as many of them in one as it may hold. An empty list needs none."""
    return [Embedding(model=model, texts=tuple(texts[at : at + MOST_TEXTS])) for at in range(0, len(texts), MOST_TEXTS)]


def scoring(text: str, *, model: str, given: str | None = None) -> Inference:
    """The job that asks how likely ``text`` is: as the answer to ``given``, or as it stands, without a chat template, where nothing is given."""
    asked = () if given is None else (Message(role="user", content=given),)
    return Inference(model=model, messages=(*asked, Message(role="assistant", content=text)), raw=given is None, want="score")


def vectors_of(found: Result) -> tuple[tuple[float, ...], ...]:
    """The vectors in a result. Raises JobFailed where it has none."""
    vectors = _completion(found).vectors
    if vectors is None:
        raise JobFailed(f"job {found.job_id} is done but its reply holds no vectors; it was a {found.job.get('kind')}.")
    return vectors


def score_of(found: Result) -> Score:
    """The score in a result."""
    return Score.of(_completion(found))


def _completion(found: Result) -> Completion:
    if found.completion is None:
        raise JobFailed(f"job {found.job_id} has no reply of one model; it was a {found.job.get('kind')}.")
    return found.completion
