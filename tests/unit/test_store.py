"""What S3 answers, as the store tells it."""

from __future__ import annotations

from typing import Any

import pytest

from symposia_shared.errors import StoreUnavailable
from symposia_shared.settings import S3Settings
from symposia_shared.store import Store


class Deletes:
    """S3's answer to a request to delete many."""

    def __init__(self, *errors: dict[str, str]) -> None:
        self.errors, self.asked = errors, list[list[str]]()

    def delete_objects(self, *, Bucket: str, Delete: dict[str, Any]) -> dict[str, Any]:
        self.asked.append([o["Key"] for o in Delete["Objects"]])
        return {"ResponseMetadata": {"HTTPStatusCode": 200}, **({"Errors": list(self.errors)} if self.errors else {})}


def store_of(client: Deletes) -> Store:
    store = Store(S3Settings(bucket="b"))
    store._client = client
    return store


def test_many_are_deleted_a_thousand_at_a_time_and_none_with_no_request() -> None:
    client = Deletes()
    store_of(client).delete_many([str(n) for n in range(1500)])
    store_of(client).delete_many([])
    assert [len(keys) for keys in client.asked] == [1000, 500]


def test_a_key_that_s3_keeps_is_told_although_the_request_was_answered_200() -> None:
    client = Deletes({"Key": "a", "Code": "AccessDenied", "Message": "Access Denied."})
    with pytest.raises(StoreUnavailable, match="access key"):
        store_of(client).delete_many(["a"])
    with pytest.raises(StoreUnavailable, match="InternalError"):
        store_of(Deletes({"Key": "a", "Code": "InternalError", "Message": "again"})).delete_many(["a"])
