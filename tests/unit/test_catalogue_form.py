"""A catalogue that is none is refused in words; the fuzz found that it was a crash."""

from __future__ import annotations

import pytest

from symposia_shared.catalogue import Catalogue
from symposia_shared.errors import BadInput


@pytest.mark.parametrize("entries", [5, "ab", {"id": "a"}, None, [1], ["x"], [None], [{"id": "a", "aliases": 5}], [{"id": "a", "aliases": None}]])
def test_what_is_no_list_of_tables_is_refused_before_any_entry_is_asked_for(entries: object) -> None:
    with pytest.raises(BadInput, match=r"\[\[checkpoint\]\]"):
        Catalogue({"checkpoint": entries})
