"""What a server's refusal means: try again, wait, or give the turn up; and how long its headers ask to wait."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

from symposia_shared.turns import Cause

#: characters of a server's own words that are repeated
MOST_WORDS = 300
_TOO_LONG = re.compile(r"context[ _](length|size|window)|maximum context|exceed_context|too many tokens|prompt is too long|"
                       r"input (is )?too (long|large)|exceeds? .{0,40}(context|max_model_len|max_seq_len|n_ctx)", re.IGNORECASE)
_SPENT = ("insufficient_quota", "billing_hard_limit_reached")
_SPAN = re.compile(r"(?:(\d+)h)?(?:(\d+)m(?!s))?(?:(\d+(?:\.\d+)?)s)?(?:(\d+(?:\.\d+)?)ms)?")


class Again(Exception):
    """This try is lost, the turn is not. ``cause`` is what it fails for once it was tried often enough."""

    def __init__(self, cause: Cause, message: str, *, after_s: float | None = None) -> None:
        super().__init__(message)
        self.cause, self.after_s = cause, after_s


class Wait(Exception):
    """The server wants the whole device to pause (429). ``after_s`` None: it does not say for how long."""

    def __init__(self, message: str, *, after_s: float | None = None) -> None:
        super().__init__(message)
        self.after_s = after_s


class Hopeless(Exception):
    """The same request would fail again."""

    def __init__(self, cause: Cause, message: str) -> None:
        super().__init__(message)
        self.cause = cause


class KeyRefused(Exception):
    """The server refuses the key (401, 403), so that no request has a chance."""


def refusal(status: int, headers: Mapping[str, str], body: bytes) -> Exception:
    """The fault in an answer that is not 2xx. ``headers`` are looked up case-insensitively, as httpx's are."""
    kind, words = said(body)
    told = f"the server answered {status}" + (f": {words}" if words else "")
    match status:
        case 401 | 403:
            return KeyRefused(told)
        case 429 if kind in _SPENT:
            return Hopeless("throttled", told)
        case 429:
            return Wait(told, after_s=pause_s(headers))
        case 404 | 405:
            return Hopeless("bad_prompt", told)
        case 408 | 425:
            return Again("timeout", told, after_s=pause_s(headers))
        case 501:
            return Hopeless("bad_prompt", told)
        case _ if status >= 500:
            return Again("device_lost", told, after_s=pause_s(headers))
        case _ if status >= 400:
            return Hopeless("prompt_too_long" if status == 413 or _TOO_LONG.search(f"{kind} {words}") else "bad_prompt", told)
        case _:
            return Hopeless("device_lost", f"{told}, which is no answer to a completion; is the URL right, with /v1?")


def in_stream(error: object) -> Exception:
    """The fault in an ``error`` that came within a stream."""
    kind, words = _error(error)
    code = error.get("code") if isinstance(error, dict) else None
    if _TOO_LONG.search(f"{kind} {words}"):
        return Hopeless("prompt_too_long", f"the server broke off: {words}")
    if isinstance(code, int) and 400 <= code < 500 and code not in (408, 425, 429):
        return Hopeless("bad_prompt", f"the server broke off: {words}")
    return Again("device_lost", f"the server broke off: {words}")


def said(body: bytes) -> tuple[str, str]:
    """(type or code, words) of an error's body, in one line, cut."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return "", _line(body.decode(errors="replace"))
    if isinstance(found, dict):
        return _error(found.get("error", found))
    return "", _line(str(found))


def _error(error: object) -> tuple[str, str]:
    if not isinstance(error, dict):
        return "", _line(str(error))
    kind = error.get("code") if isinstance(error.get("code"), str) else error.get("type")
    words = error.get("message") or error.get("detail") or error
    return str(kind or ""), _line(str(words))


def pause_s(headers: Mapping[str, str], now: float | None = None) -> float | None:
    """Seconds a server asks to wait: ``Retry-After`` (also as a date), else the latest ``x-ratelimit-reset-*`` of what is used up."""
    wall = time.time() if now is None else now
    if (ms := _number(headers.get("retry-after-ms", ""))) is not None:
        return max(0.0, ms / 1000)
    after = headers.get("retry-after", "")
    if after:
        seconds = _number(after)
        return max(0.0, seconds if seconds is not None else _until(after, wall))
    resets = {name.lower().removeprefix("x-ratelimit-reset"): span for name, text in headers.items()
              if name.lower().startswith("x-ratelimit-reset") and (span := _span(text, wall)) is not None}
    used_up = {name for name in resets if headers.get(f"x-ratelimit-remaining{name}", "").strip() == "0"}
    return max((span for name, span in resets.items() if not used_up or name in used_up), default=None)


def _number(text: str) -> float | None:
    return float(text) if re.fullmatch(r"\s*\d{1,15}(\.\d+)?\s*", text) else None


def _until(date: str, now: float) -> float:
    try:
        return parsedate_to_datetime(date).timestamp() - now
    except (ValueError, TypeError, OverflowError):
        return 0.0


def _span(text: str, now: float) -> float | None:
    """Seconds in ``6m0s``, ``20ms``, ``1.5`` or a time since the epoch in seconds or milliseconds."""
    number = _number(text)
    if number is not None:
        return number if number < 1e9 else max(0.0, (number / 1000 if number > 1e11 else number) - now)
    found = _SPAN.fullmatch(text.strip())
    if found is None or not any(found.groups()):
        return None
    h, m, s, ms = (float(g or 0) for g in found.groups())
    return h * 3600 + m * 60 + s + ms / 1000


def _line(text: str) -> str:
    line = " ".join(text.split()).rstrip(".")
    return line if len(line) <= MOST_WORDS else line[: MOST_WORDS - 3] + "..."
