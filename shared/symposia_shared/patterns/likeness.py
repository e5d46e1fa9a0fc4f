"""How alike free texts are, as a recorded turn: a model that embeds them is asked, so that the play itself stays pure."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

from pydantic import Field

from symposia_shared.answers import AnswerKind, extract
from symposia_shared.consensus import TOKEN_JACCARD, Likeness
from symposia_shared.patterns.artefacts import cut
from symposia_shared.patterns.members import Steps
from symposia_shared.play import Round
from symposia_shared.prompts import Message
from symposia_shared.turns import LIKENESS, Reply, Turn
from symposia_shared.values import Value

#: a text is shown so far; the embedding model reads 256 tokens of it
MOST_CHARS = 4000

#: how texts are compared where ``check/likeness`` has nothing to say
BY_WORDS = replace(TOKEN_JACCARD, name=f"{TOKEN_JACCARD.name}, as {LIKENESS} did not answer")


class Alikeness(Value):
    """What ``check/likeness`` says of n texts."""

    #: the model and the measure, as they stand in the verdict's rule
    scorer: Annotated[str, Field(min_length=1, max_length=200)]
    #: from here on two texts mean the same
    threshold: float = Field(ge=-1.0, le=1.0)
    #: (n, n), symmetric
    alike: tuple[tuple[float, ...], ...]


def likeness_check(texts: Sequence[str]) -> Turn:
    """A turn in which each of ``texts`` is compared with each."""
    task = json.dumps({"texts": [cut(t, MOST_CHARS) for t in texts]}, ensure_ascii=False)
    return Turn(member=LIKENESS, model=LIKENESS, messages=(Message(role="system", content="{}"), Message(role="user", content=task)))


def likeness_in(reply: Reply, texts: Sequence[str]) -> Likeness | None:
    """The likeness that a reply to ``likeness_check(texts)`` tells; None where it abstained or does not fit the texts."""
    if reply.kind != "completion":
        return None
    try:
        told = Alikeness.model_validate_json(reply.text)
    except ValueError:
        return None
    if [len(row) for row in told.alike] != [len(texts)] * len(texts) or not all(math.isfinite(x) for row in told.alike for x in row):
        return None
    place = {text: i for i, text in enumerate(texts)}
    return Likeness(name=told.scorer, threshold=told.threshold, of=lambda a, b: told.alike[place[a]][place[b]])


def likeness_of(texts: Sequence[str | None], kind: AnswerKind) -> Steps[Likeness | None]:
    """How ``texts`` are to be compared. One round of one turn where they are of kind ``text`` and at least two differ, else none, and None."""
    distinct = sorted({read for t in texts if t is not None and (read := extract(t, "text")) is not None}) if kind == "text" else []
    if len(distinct) < 2:
        return None
    (reply,) = yield Round(turns=(likeness_check(distinct),), quorum=0)
    return likeness_in(reply, distinct) or BY_WORDS
