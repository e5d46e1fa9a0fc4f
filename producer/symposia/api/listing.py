"""Lists: how much of one is asked for, and a page of it."""

from __future__ import annotations

from typing import Any

from symposia_shared.errors import BadInput


def number(raw: str, *, most: int) -> int | None:
    """The whole number from 1 to ``most`` that a text is, None for any other. Its length is looked at first: int() takes long for a long one."""
    if not raw.isascii() or not raw.isdecimal() or len(raw) > 9:
        return None
    return int(raw) if 1 <= int(raw) <= most else None


def whole(raw: str | None, name: str, *, usual: int, most: int) -> int:
    """A number from the query. Raises BadInput."""
    found = usual if raw is None else number(raw, most=most)
    if found is None:
        raise BadInput(f"{name!r} is {str(raw)[:80]!r}.", field=name, value=raw, remedy=f"Give a whole number from 1 to {most:,}.")
    return found


def page(items: list[dict[str, Any]], *, more: bool) -> dict[str, Any]:
    """A page of a list, in OpenAI's form."""
    return {"object": "list", "data": items, "first_id": items[0]["id"] if items else None, "last_id": items[-1]["id"] if items else None,
            "has_more": more}
