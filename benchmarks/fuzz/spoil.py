"""Strategies: any JSON at all, and sound examples in which a few places were changed, dropped, doubled or put in another's stead."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

#: words that have broken readers before
ODD = ("", " ", "\x00", "\ud800", "‮", "é", "﷽", "NaN", "1e999", "-0", "true", "null", "@jobs/x", "|", "../..", "/", "%2F", "test/", "check/", "a" * 300,
       "\n", "{}", "[]", "$ref", "__class__", "constructor", "0" * 40)
NUMBERS = st.one_of(st.integers(-3, 3), st.integers(), st.sampled_from([2**31, 2**63, -2**63, 10**400, 1e308, -1e308, 5e-324, float("nan"), float("inf"), 0.5]),
                    st.floats(allow_nan=True, allow_infinity=True))
LEAVES: st.SearchStrategy[Any] = st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=20), st.sampled_from(ODD))
ANY: st.SearchStrategy[Any] = st.recursive(
    LEAVES, lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)), max_leaves=12)


@st.composite
def spoiled(draw: st.DrawFn, seeds: Sequence[Any]) -> Any:
    """One of ``seeds`` with up to four changes; or any JSON."""
    if draw(st.integers(0, 9)) == 0:
        return draw(ANY)
    value = copy.deepcopy(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(0, 4))):
        value = _changed(draw, value)
    return value


def _changed(draw: st.DrawFn, value: Any) -> Any:
    """``value`` with one change, somewhere in it."""
    if isinstance(value, dict) and value and draw(st.integers(0, 3)):
        name = draw(st.sampled_from(sorted(value)))
        how = draw(st.integers(0, 7))
        if how == 0:
            del value[name]
        elif how == 1:
            value[draw(st.one_of(st.sampled_from(ODD), st.sampled_from(sorted(value))))] = draw(ANY)
        elif how == 2:
            value[name] = draw(ANY)
        else:
            value[name] = _changed(draw, value[name])
        return value
    if isinstance(value, list) and value and draw(st.integers(0, 3)):
        at = draw(st.integers(0, len(value) - 1))
        how = draw(st.integers(0, 5))
        if how == 0:
            del value[at]
        elif how == 1:
            value.insert(at, copy.deepcopy(value[at]))
        else:
            value[at] = _changed(draw, value[at])
        return value
    return draw(st.one_of(LEAVES, ANY))


@st.composite
def texts(draw: st.DrawFn, seeds: Sequence[str]) -> str:
    """One of ``seeds`` with a few characters changed; or any text."""
    if draw(st.integers(0, 5)) == 0:
        return draw(st.text(max_size=60))
    text = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(text)))
        text = text[:at] + draw(st.one_of(st.text(max_size=3), st.sampled_from(ODD))) + text[at + draw(st.integers(0, 2)):]
    return text


@st.composite
def raw(draw: st.DrawFn, seeds: Sequence[Any]) -> bytes:
    """JSON as bytes, some of them flipped, cut or doubled."""
    body = bytearray(json.dumps(draw(spoiled(seeds))).encode("utf-8", "surrogatepass"))
    for _ in range(draw(st.integers(0, 3))):
        if body:
            at = draw(st.integers(0, len(body) - 1))
            how = draw(st.integers(0, 2))
            if how == 0:
                body[at] = draw(st.integers(0, 255))
            elif how == 1:
                del body[at:]
            else:
                body[at:at] = draw(st.binary(max_size=4))
    return bytes(body)
