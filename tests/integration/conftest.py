from __future__ import annotations

from collections.abc import Iterator

import pytest
from stack import Stack, running_stack


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """One stack of the scripted checkpoints for all tests that leave it whole."""
    with running_stack(tmp_path_factory.mktemp("stack"), "--test-models") as running:
        yield running
