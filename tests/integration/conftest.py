from __future__ import annotations

import json
from collections.abc import Iterator

import httpx
import pytest
from openai import OpenAI
from stack import Stack, running_stack

from s3 import running_s3
from symposia.cli.info import running
from symposia_shared.settings import S3Settings
from symposia_shared.store import Store
from symposia_worker.models.store import ModelStore


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """One stack of the scripted checkpoints for all tests that leave it whole."""
    with running_stack(tmp_path_factory.mktemp("stack"), "--test-models") as found:
        yield found


# -- S3 alone ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Settings]:
    """An S3 for a module of tests."""
    with running_s3(tmp_path_factory.mktemp("s3")) as settings:
        yield settings


@pytest.fixture
def models(s3: S3Settings) -> ModelStore:
    """A model store with nothing in it."""
    store = Store(s3)
    store.delete_many([*store.keys("models/"), *store.keys("catalogue/")])
    return ModelStore(store)


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
