from __future__ import annotations

from collections.abc import Iterator

import pytest

from symposia_shared.ledger import Ledger


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Valkey for a module of tests."""
    from valkey_server import running_valkey  # the short leg on the newest transformers has no embedded services

    with running_valkey(tmp_path_factory.mktemp("valkey")) as found:
        yield found


@pytest.fixture(scope="module")
def server(url: str) -> Ledger:
    """A ledger on it, as the last test left it."""
    return Ledger(url, "t:")


@pytest.fixture
def ledger(server: Ledger) -> Ledger:
    """A ledger with nothing in it."""
    from valkey_server import emptied

    return emptied(server)
