"""How much of a list is asked for: what was checked is what is used."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any
from unittest.mock import AsyncMock, MagicMock

import pytest
from fastapi import Request
from fastapi.responses import Response

from symposia.api.faults import HttpFault
from symposia.api.listing import number, page, whole
from symposia.api.routes import responses, webhooks
from symposia_shared.errors import BadInput


@pytest.mark.parametrize("raw", ["0", "101", "0000019999999", "00000199", "9" * 5000, "-1", "1.0", "", " 1", "\u0663", "\u00b2"])
def test_what_is_no_number_within_the_limit_is_refused(raw: str) -> None:
    assert number(raw, most=100) is None
    with pytest.raises(BadInput):
        whole(raw, "limit", usual=20, most=100)


def test_a_number_within_the_limit_is_read() -> None:
    assert [number(raw, most=100) for raw in ("1", "100", "007")] == [1, 100, 7]
    assert whole(None, "limit", usual=20, most=100) == 20


def request(limit: str) -> Request:
    return Request({"type": "http", "query_string": f"limit={limit}".encode(), "headers": []})


@pytest.mark.parametrize(("route", "seam", "found"), [
    (lambda r: responses.list_items(r, "resp_x"), (responses, "_found"), MagicMock()),
    (webhooks.list_notices, (webhooks, "_outbox"), (MagicMock(), "default")),
])
def test_a_limit_whose_beginning_is_small_is_refused(
    route: Callable[[Request], Awaitable[Response]], seam: tuple[Any, str], found: Any, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(*seam, AsyncMock(return_value=found))

    async def asked() -> Response:
        return await route(request("0000019999999"))

    with pytest.raises(HttpFault) as refusal:
        asyncio.run(asked())
    assert (refusal.value.status, refusal.value.body["error"]["param"]) == (400, "limit")


def test_a_page_names_its_ends() -> None:
    items = [{"id": "a"}, {"id": "b"}]
    assert page(items, more=True) == {"object": "list", "data": items, "first_id": "a", "last_id": "b", "has_more": True}
    assert page([], more=False)["first_id"] is None
