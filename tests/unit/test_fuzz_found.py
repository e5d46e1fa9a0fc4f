"""What the fuzz found: a catalogue that is none was a crash, and half of a surrogate pair was accepted and could never be written."""

from __future__ import annotations

import pytest

from symposia_shared.catalogue import Catalogue, Facts
from symposia_shared.errors import BadInput
from symposia_shared.prompts import Message
from symposia_shared.turns import Completion, Turn
from symposia_shared.values import Value


@pytest.mark.parametrize("entries", [5, "ab", {"id": "a"}, None, [1], ["x"], [None], [{"id": "a", "aliases": 5}], [{"id": "a", "aliases": None}]])
def test_what_is_no_list_of_tables_is_refused_before_any_entry_is_asked_for(entries: object) -> None:
    with pytest.raises(BadInput, match=r"\[\[checkpoint\]\]"):
        Catalogue({"checkpoint": entries})


@pytest.mark.parametrize(("cls", "raw"), [
    (Message, {"role": "user", "content": "\ud800"}), (Completion, {"kind": "completion", "text": "half \udfff"}),
    (Completion, {"kind": "completion", "text": "", "options": {"\ud800": 1.0}}), (Turn, {"member": "\ud800", "model": "m", "messages": []}),
    (Facts, {"architecture": "\ud800"}),
])
def test_half_of_a_surrogate_pair_is_refused_wherever_it_stands(cls: type[Value], raw: dict[str, object]) -> None:
    with pytest.raises(BadInput, match=r"surrogate|unicode"):
        cls.parse(raw)


def test_a_whole_pair_is_one_character_and_accepted() -> None:
    assert Message.from_json(b'{"role": "user", "content": "\\ud83d\\ude00"}').content == "\N{GRINNING FACE}"
