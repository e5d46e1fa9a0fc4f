"""The lines of OpenAI's batch files: a request a line in, an answer a line out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from symposia_shared.errors import BadInput
from symposia_shared.openai.replies import error_body
from symposia_shared.openai.requests import Request, read_request

#: bytes one line may have
MOST_LINE_BYTES = 8 * 1024 * 1024
#: characters a ``custom_id`` may have
MOST_ID = 512


@dataclass(frozen=True, slots=True)
class Line:
    """One request of a batch file."""

    #: from 1, blank lines counted
    number: int
    custom_id: str
    endpoint: str
    body: Mapping[str, Any]

    def request(self, *, model: str | None = None) -> Request:
        """What it asks for; ``model`` replaces the body's. Raises BadInput."""
        asked = read_request(self.endpoint, self.body, model=model)
        if asked.stream:
            raise BadInput("'stream' cannot be honoured in a batch.", field="stream", value=True, remedy="Remove it.")
        return asked


class BadLine(BadInput):
    """A line that is no request. ``custom_id`` where it could be read."""

    def __init__(self, message: str, *, code: str, field: str = "", custom_id: str | None = None) -> None:
        self.code, self.custom_id = code, custom_id
        super().__init__(message, field=field)


def read_line(raw: bytes, number: int) -> Line:
    """The request in a line. Raises BadLine."""
    if len(raw) > MOST_LINE_BYTES:
        raise BadLine(f"the line has {len(raw):,} bytes; at most {MOST_LINE_BYTES:,} are read.", code="line_too_long")
    try:
        value = json.loads(raw.decode("utf-8"), parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise BadLine(f"the line is not JSON: {error}.", code="invalid_json_line") from None
    if not isinstance(value, dict):
        raise BadLine(f"the line is a JSON {type(value).__name__}, not an object.", code="invalid_json_line")
    custom_id = value.get("custom_id")
    if not isinstance(custom_id, str) or not 0 < len(custom_id) <= MOST_ID:
        raise BadLine(f"'custom_id' is {_short(custom_id)}; give a text of 1 to {MOST_ID} characters.", code="missing_custom_id", field="custom_id")
    try:
        custom_id.encode()
    except UnicodeEncodeError:
        raise BadLine("'custom_id' holds a lone surrogate, which is no text.", code="missing_custom_id", field="custom_id") from None
    return Line(number, custom_id, *_called(value, custom_id))


def _called(value: Mapping[str, Any], custom_id: str) -> tuple[str, Mapping[str, Any]]:
    extra = sorted(set(value) - {"custom_id", "method", "url", "body"})
    if extra:
        raise BadLine(f"the line has a field {extra[0]!r}; its fields are custom_id, method, url and body.", code="unknown_field", field=extra[0],
                      custom_id=custom_id)
    if value.get("method", "POST") != "POST":
        raise BadLine(f"'method' is {_short(value['method'])}; it can only be POST.", code="invalid_method", field="method", custom_id=custom_id)
    url, body = value.get("url"), value.get("body")
    if not isinstance(url, str):
        raise BadLine(f"'url' is {_short(url)}; give the path of an endpoint.", code="invalid_url", field="url", custom_id=custom_id)
    if not isinstance(body, dict):
        raise BadLine(f"'body' is {_short(body)}; give the request as an object.", code="invalid_body", field="body", custom_id=custom_id)
    return url, body


def answer_line(*, request_id: str, custom_id: str | None, status: int, body: Mapping[str, Any], error: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A line of a batch's output. ``error`` stands beside the body of a request that failed, and names the line."""
    return {"id": f"batch_req_{request_id}", "custom_id": custom_id,
            "response": {"status_code": status, "request_id": request_id, "body": body}, "error": error}


def error_line(*, request_id: str, number: int, custom_id: str | None, status: int, body: Mapping[str, Any]) -> dict[str, Any]:
    """The line of a request that failed: OpenAI's error body, and beside it code, message and the number of the line."""
    fault = body["error"]
    error = {"code": fault["code"] or fault["type"], "message": f"line {number}: {fault['message']}", "line": number}
    return answer_line(request_id=request_id, custom_id=custom_id, status=status, body=body, error=error)


def bad_line(error: BadLine, *, request_id: str, number: int) -> dict[str, Any]:
    """The line that answers what is no request."""
    body = error_body(str(error), param=error.field or None, code=error.code)
    return error_line(request_id=request_id, number=number, custom_id=error.custom_id, status=400, body=body)


def request_id(raw: bytes, number: int, *, options: str) -> str:
    """An id that is the same for the same line at the same place under the same options, and another one for any other."""
    return hashlib.sha256(b"%d\n%s\n%s" % (number, options.encode(), raw.strip())).hexdigest()[:32]


def _no_number(word: str) -> Any:
    raise ValueError(f"{word} is no JSON number")


def _short(value: Any) -> str:
    shown = repr(value)
    return "missing" if value is None else shown if len(shown) <= 80 else shown[:77] + "..."
