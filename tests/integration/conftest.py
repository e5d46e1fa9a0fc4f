from __future__ import annotations

import json
from collections.abc import Iterator

import httpx
import pytest
from openai import OpenAI
from stack import Stack, running_stack

from symposia.cli.info import running


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """One stack of the scripted checkpoints for all tests that leave it whole."""
    with running_stack(tmp_path_factory.mktemp("stack"), "--test-models") as found:
        yield found


# -- the stack's HTTP API, as its first tenant -------------------------------------------------------------------


@pytest.fixture(scope="module")
def url(stack: Stack) -> str:
    return str(running(stack.folder)["api"])


@pytest.fixture(scope="module")
def key(stack: Stack) -> str:
    return str(json.loads((stack.folder / "credentials.json").read_text())["api_key"])


@pytest.fixture(scope="module")
def client(url: str, key: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=url, api_key=key, max_retries=0, timeout=60) as made:
        yield made


@pytest.fixture(scope="module")
def raw(url: str, key: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=60) as made:
        yield made
