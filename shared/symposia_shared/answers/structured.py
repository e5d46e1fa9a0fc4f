"""JSON answers: compared as values, keys in any order, 1.0 equal to 1."""

from __future__ import annotations

import json

from symposia_shared.answers.reading import parts, said

#: how many places a value may start at are tried
MOST_STARTS = 200


def extract_json(text: str) -> str | None:
    """The last JSON object or array of a text (or the text itself, where it is one JSON value), in canonical form."""
    heard = said(text)
    whole = canonical_json_answer(heard)
    if whole is not None:
        return whole
    for part in parts(heard):
        found = last_value(part)
        if found is not None:
            return _canonical(found)
    return None


def canonical_json_answer(raw: str) -> str | None:
    """Compact JSON with sorted keys; None where ``raw`` is not JSON."""
    try:
        return _canonical(json.loads(raw, parse_constant=_refuse))
    except (ValueError, RecursionError):
        return None


def last_value(text: str) -> object:
    """The last object or array written in ``text``; None where there is none."""
    found, at = None, 0
    decoder = json.JSONDecoder(parse_constant=_refuse, strict=False)
    for _ in range(MOST_STARTS):
        starts = [i for i in (text.find("{", at), text.find("[", at)) if i >= 0]
        if not starts:
            break
        at = min(starts)
        try:
            found, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            at += 1
    return found


def _canonical(value: object) -> str | None:
    try:
        return json.dumps(_plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    except (ValueError, RecursionError):
        return None


def _plain(value: object) -> object:
    match value:
        case float() if value.is_integer() and abs(value) < 1e15:
            return int(value)
        case list():
            return [_plain(v) for v in value]
        case dict():
            return {k: _plain(v) for k, v in value.items()}
        case _:
            return value


def _refuse(word: str) -> object:
    raise ValueError(f"{word} is not JSON")
