"""What one who asks for a form reads when it is refused: their pattern's place, not llguidance's grammar."""

from __future__ import annotations

import pytest

pytest.importorskip("llguidance")

from symposia_shared.errors import BadInput
from symposia_shared.prompts import JsonForm, RegexForm
from symposia_worker.engines.grammar import compile_form


@pytest.mark.parametrize(("pattern", "said"), [
    ("ab(", "unclosed group (at character 3)"), ("x(?<=a)b", "look-ahead and look-behind cannot be enforced (at character 2)"),
    (r"(a)\1", "back-references cannot be enforced (at character 4)"), (r"\bfoo", "word boundaries"), ("a{1000000}", "unfolds into more parts"),
    ("[z-a]", "invalid character class range"), ("(?>a)", "this kind of group is not known"),
])
def test_a_pattern_is_refused_with_the_place_and_the_reason(pattern: str, said: str) -> None:
    with pytest.raises(BadInput) as refused:
        compile_form(RegexForm(pattern=pattern))
    assert said in str(refused.value)
    assert not any(inside in str(refused.value) for inside in ("start:", "regex parse error", "at 1(", " | "))


def test_a_pattern_within_a_schema_is_refused_alike() -> None:
    with pytest.raises(BadInput, match="back-references cannot be enforced"):
        compile_form(JsonForm(definition={"type": "object", "properties": {"a": {"type": "string", "pattern": r"(a)\1"}}, "required": ["a"]}))
