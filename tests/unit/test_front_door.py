from __future__ import annotations

import symposia


def test_front_door() -> None:
    """Every public name is there, is sorted, and is documented."""
    assert symposia.__all__ == sorted(symposia.__all__)
    for name in symposia.__all__:
        assert getattr(symposia, name).__doc__, f"symposia.{name} has no docstring"


def test_sync_and_async_clients_have_the_same_names() -> None:
    def names(cls: type) -> set[str]:
        return {n for n in vars(cls) if not n.startswith("_")}

    assert names(symposia.AsyncClient) <= names(symposia.Client)
    assert names(symposia.AsyncHandle) <= names(symposia.Handle) | {"status", "wait", "result", "rounds", "cancel"}
    assert {"submit", "submit_many", "ask", "handle", "cancel", "stats", "close"} <= names(symposia.AsyncClient)
