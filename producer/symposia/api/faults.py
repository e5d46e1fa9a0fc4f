"""Faults as OpenAI's error bodies. No answer tells more of ours than the error's own sentence."""

from __future__ import annotations

import logging
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from symposia.api.tenancy import headers_of
from symposia_shared.errors import SymposiaError
from symposia_shared.openai.outcomes import fault_of_result
from symposia_shared.openai.replies import error_body, fault_of
from symposia_shared.results import Result

log = logging.getLogger(__name__)


#: a job's field → what a body calls it
_SAID = {"sampling.form": ("response_format", "structured_outputs", "text"),
         "want": ("model",), "prompt": ("messages", "prompt", "input"), "members": ("model",)}


class HttpFault(Exception):
    """A request that is answered with an error body as it stands."""

    def __init__(self, status: int, body: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        self.status, self.body, self.headers = status, body, headers
        super().__init__(body["error"]["message"])


def refused(status: int, message: str, *, code: str, param: str | None = None, headers: dict[str, str] | None = None) -> HttpFault:
    """A refusal of the request itself."""
    return HttpFault(status, error_body(message, param=param, code=code), headers)


def fault_in(result: Result) -> HttpFault | None:
    """Why a job has no answer, None where it has one. Of a single prompt its model's own reason decides the status."""
    found = fault_of_result(result)
    return None if found is None else HttpFault(*found)


async def answer_fault(_: Request, error: Exception) -> Response:
    """A refusal."""
    assert isinstance(error, HttpFault)  # noqa: S101 - registered for these alone
    return JSONResponse(error.body, error.status, headers=error.headers)


async def answer_error(request: Request, error: Exception) -> Response:
    """One of our typed errors, told by the body's own names."""
    assert isinstance(error, SymposiaError)  # noqa: S101 - registered for these alone
    status, body = fault_of(error)
    given: frozenset[str] = request.scope.get("fields", frozenset())
    said = _SAID.get(body["error"]["param"] or "", ())
    body["error"]["param"] = next((name for name in said if name in given), body["error"]["param"])
    return JSONResponse(body, status, headers=headers_of(error))


async def answer_http(_: Request, error: Exception) -> Response:
    """What the framework itself refuses: a path or a method that is not there."""
    status = getattr(error, "status_code", 500)
    message = {404: "there is nothing at this path.", 405: "this path does not take that method."}.get(status, str(getattr(error, "detail", "refused")))
    return JSONResponse(error_body(message, code={404: "not_found", 405: "method_not_allowed"}.get(status)), status,
                        headers=getattr(error, "headers", None))


async def answer_bug(request: Request, error: Exception) -> Response:
    """Anything else is a bug: it is logged, and the answer says where to find it."""
    request_id = request.scope.get("request_id", "")
    log.error("request %s failed", request_id, exc_info=error)
    return JSONResponse(error_body(f"this request failed for a reason of ours; it is logged as {request_id}.", type="server_error", code="bug"), 500,
                        headers={"x-request-id": request_id})
