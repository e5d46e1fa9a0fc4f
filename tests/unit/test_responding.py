"""What becomes of a response that is not to be stored: whatever ends it, it is erased."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock, MagicMock

import pytest
from fastapi import Request

from symposia.api import responding
from symposia.api.faults import HttpFault, refused
from symposia.once import Submitted
from symposia_shared.errors import BadInput
from symposia_shared.jobs import Inference
from symposia_shared.ledger.tenants import ApiKey
from symposia_shared.openai.responses import ResponseRecord

KEY, JOB = ApiKey(id="k", tenant="t"), Inference(model="m", prompt="?")


def record(*, store: bool = False, **more: Any) -> ResponseRecord:
    return ResponseRecord(job_id="j", tenant="t", model="m", created_at=1.0, messages=(), store=store, **more)


def desk(**more: Any) -> Any:
    made = SimpleNamespace(ask=AsyncMock(return_value=Submitted([MagicMock()])), erase_later=MagicMock(), cancel_later=MagicMock(), client=MagicMock(), **more)
    made.ears = SimpleNamespace(listen=lambda *_: AsyncExitStack())
    return made


def request(**headers: str) -> Request:
    return Request({"type": "http", "headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]})


@pytest.mark.parametrize("end", [refused(499, "the client has gone.", code="cancelled"), refused(500, "it failed", code="bug")])
def test_what_fails_or_is_left_is_erased_too(end: HttpFault) -> None:
    of = desk(answers=AsyncMock(side_effect=end))
    with pytest.raises(HttpFault):
        asyncio.run(responding.answer(of, KEY, record(), JOB, request(), None))
    of.erase_later.assert_called_once_with("j")


def test_what_is_stored_or_is_still_to_be_told_of_is_not_erased() -> None:
    for kept in (record(store=True), record(metadata={"webhook": "https://example.com"})):
        of = desk(answers=AsyncMock(side_effect=refused(500, "it failed", code="bug")))
        with pytest.raises(HttpFault):
            asyncio.run(responding.answer(of, KEY, kept, JOB, request(), None))
        of.erase_later.assert_not_called()


def test_a_stream_whose_reader_goes_is_erased() -> None:
    of = desk()

    async def read_a_little() -> None:
        sent: Any = await responding.stream(of, KEY, record(), JOB, request(), None)
        assert "response.created" in await anext(sent.body_iterator)
        of.erase_later.assert_not_called()
        await sent.body_iterator.aclose()

    asyncio.run(read_a_little())
    of.erase_later.assert_called_once_with("j")


def test_an_idempotency_key_is_refused_where_the_answer_is_not_to_be_stored() -> None:
    keyed = request(idempotency_key="one")
    with pytest.raises(BadInput) as refusal:
        responding.once_of_response(keyed, KEY, {}, record())
    assert refusal.value.field == "store"
    assert responding.once_of_response(keyed, KEY, {}, record(store=True)) is not None
    assert responding.once_of_response(request(), KEY, {}, record()) is None
