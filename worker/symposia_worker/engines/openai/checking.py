"""The last look at an answer: whether it has the form that was asked for, whoever was to enforce it.

JSON is parsed by Python's reader and compared with what its schema says of types, fields, options and bounds (not with formats,
patterns or conditionals). A choice is one of its options. A regex is matched over the whole answer by llguidance, the engine behind
``torch``: the same syntax as Rust's, which Python's ``re`` does not share.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from symposia_shared.errors import BadInput
from symposia_shared.prompts import ChoiceForm, Form, JsonForm, RegexForm
from symposia_shared.turns import Completion
from symposia_worker.engines.openai.asking import OPTION, Ask
from symposia_worker.engines.openai.faults import Hopeless

_TYPES: dict[str, tuple[type, ...]] = {"object": (dict,), "array": (list,), "string": (str,), "boolean": (bool,), "null": (type(None),)}
#: how deep a value is compared
DEEPEST = 100


def checked(completion: Completion, form: Form, ask: Ask) -> Completion:
    """The completion, taken out of what stood round it. Raises Hopeless where it has not the form."""
    if ask.wrapped:
        completion = completion.model_copy(update={"text": _unwrapped(completion.text)})
    match form:
        case JsonForm():
            fault = _json_fault(completion.text, form.definition)
        case ChoiceForm():
            fault = "" if completion.text in form.options else f"{completion.text[:80]!r} is none of the options"
        case RegexForm():
            fault = "" if matches(form.pattern, completion.text) else f"{completion.text[:80]!r} does not match {form.pattern!r}"
    if fault:
        cut = "; it was cut off at max_tokens: allow it more" if completion.finish_reason == "length" else ""
        raise Hopeless("refused", f"the answer has not the form asked for ({form.kind}): {fault}{cut}.")
    return completion


def refuse_pattern(pattern: str) -> None:
    """Raise BadInput for a regular expression that is none."""
    from llguidance import LLMatcher

    if fault := LLMatcher.validate_grammar(LLMatcher.grammar_from_regex(pattern)):
        raise BadInput(f"the regex {pattern!r} is refused: {' '.join(fault.split())[:200]}.", field="form.pattern", value=pattern, remedy="Correct it.")


def matches(pattern: str, text: str) -> bool:
    """Whether all of ``text`` matches ``pattern``."""
    from llguidance import LLMatcher, LLTokenizer

    matcher = LLMatcher(LLTokenizer("byte"), LLMatcher.grammar_from_regex(pattern), log_level=0)
    data = list(text.encode())
    return (matcher.try_consume_tokens(data) == len(data) and not matcher.is_error()
            and (matcher.is_accepting() or str(matcher.stop_reason()) == "EndOfSentence"))


def _unwrapped(text: str) -> str:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not isinstance(found.get(OPTION), str):
        raise Hopeless("refused", f"the answer has not the form asked for (choice): {text[:80]!r} is no object with {OPTION!r}.")
    return str(found[OPTION])


def _json_fault(text: str, schema: dict[str, Any]) -> str:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        return f"it is no JSON ({error})"
    if not schema:
        return "" if isinstance(value, dict) else "it is no JSON object"
    return next(_faults(value, schema, schema, "$", DEEPEST), "")


def _faults(value: Any, schema: Any, root: dict[str, Any], at: str, left: int) -> Iterator[str]:
    """What is wrong with ``value``, at which place; keywords that are not known here find nothing wrong."""
    if schema is False:
        yield f"{at} may not be there"
    if not isinstance(schema, dict) or left == 0:
        return
    if isinstance(schema.get("$ref"), str):
        yield from _faults(value, _target(schema["$ref"], root), root, at, left - 1)
    if "type" in schema and not _of_type(value, schema["type"]):
        yield f"{at} is {json.dumps(value)[:40]}, not of type {schema['type']}"
    if "enum" in schema and value not in schema["enum"]:
        yield f"{at} is {json.dumps(value)[:40]}, none of {json.dumps(schema['enum'])[:80]}"
    if "const" in schema and value != schema["const"]:
        yield f"{at} is {json.dumps(value)[:40]}, not {json.dumps(schema['const'])[:80]}"
    for part in schema.get("allOf", ()):
        yield from _faults(value, part, root, at, left - 1)
    for name in ("anyOf", "oneOf"):
        if name in schema and all(next(_faults(value, s, root, at, left - 1), "") for s in schema[name]):
            yield f"{at} fits none of {name}"
    yield from _bounds(value, schema, at)
    yield from _within(value, schema, root, at, left)


def _bounds(value: Any, schema: dict[str, Any], at: str) -> Iterator[str]:
    size = value if isinstance(value, int | float) and not isinstance(value, bool) else None
    length = len(value) if isinstance(value, str | list | dict) else None
    suffix = "Length" if isinstance(value, str) else "Items" if isinstance(value, list) else "Properties"
    for number, least, most in ((size, "minimum", "maximum"), (length, f"min{suffix}", f"max{suffix}")):
        if number is None:
            continue
        if isinstance(schema.get(least), int | float) and number < schema[least]:
            yield f"{at} is below {least} {schema[least]}"
        if isinstance(schema.get(most), int | float) and number > schema[most]:
            yield f"{at} is above {most} {schema[most]}"


def _within(value: Any, schema: dict[str, Any], root: dict[str, Any], at: str, left: int) -> Iterator[str]:
    if isinstance(value, list):
        leading = schema.get("prefixItems", ())
        for i, item in enumerate(value):
            yield from _faults(item, leading[i] if i < len(leading) else schema.get("items", True), root, f"{at}[{i}]", left - 1)
    if not isinstance(value, dict):
        return
    for name in schema.get("required", ()):
        if name not in value:
            yield f"{at} lacks {name!r}"
    known = schema.get("properties", {})
    others = True if "patternProperties" in schema else schema.get("additionalProperties", True)
    for name, item in value.items():
        yield from _faults(item, known.get(name, others), root, f"{at}.{name}", left - 1)


def _of_type(value: Any, wanted: Any) -> bool:
    if isinstance(wanted, list):
        return any(_of_type(value, one) for one in wanted)
    if wanted in ("number", "integer"):
        return isinstance(value, int | float) and not isinstance(value, bool) and (wanted == "number" or float(value).is_integer())
    return isinstance(value, _TYPES.get(wanted, (object,)))


def _target(ref: str, root: dict[str, Any]) -> Any:
    found: Any = root
    for part in ref.removeprefix("#").strip("/").split("/"):
        if part:
            found = found.get(part.replace("~1", "/").replace("~0", "~"), True) if isinstance(found, dict) else True
    return found
