"""What a store makes of S3's answers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from symposia_shared.errors import StoreUnavailable
from symposia_shared.settings import S3Settings
from symposia_shared.store import Store


def test_a_deletion_that_s3_refuses_within_an_answer_of_200_is_an_error() -> None:
    store = Store(S3Settings(endpoint_url="http://127.0.0.1:1", access_key="x", secret_key="x"))
    refused = {"Errors": [{"Key": "jobs/a/result.json", "Code": "AccessDenied", "Message": "no"}]}
    store._client = SimpleNamespace(delete_objects=lambda **_: refused)
    with pytest.raises(StoreUnavailable, match=r"refused to delete 1 objects, the first .*jobs/a/result.json: AccessDenied"):
        store.delete_many(["jobs/a/result.json", "jobs/a/job.json"])


def test_many_are_deleted_a_thousand_at_a_time_and_none_with_no_request() -> None:
    store, asked = Store(S3Settings(endpoint_url="http://127.0.0.1:1", access_key="x", secret_key="x")), list[int]()

    def deleted(**given: Any) -> dict[str, Any]:
        asked.append(len(given["Delete"]["Objects"]))
        return {}

    store._client = SimpleNamespace(delete_objects=deleted)
    store.delete_many([str(n) for n in range(1500)])
    store.delete_many([])
    assert asked == [1000, 500]
