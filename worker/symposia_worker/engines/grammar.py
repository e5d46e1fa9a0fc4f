"""What an answer must look like, as a grammar: compiled before a turn is admitted, walked token by token while it is decoded.

    grammar = compile_form(form)                      the gate: BadInput for what is wrong, unenforceable or too costly
    grammar.accepts(text)                             whether a whole text has the form
    walk = grammar.start(Vocabulary(tokenizer, ...))  one row's way through it: mask(), take(token), ended

llguidance compiles and walks (Earley parsing over derivatives of regular expressions; github.com/guidance-ai/llguidance).
All limits are counts, not seconds: the same form is judged the same on a busy machine. No torch is needed here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from symposia_shared.errors import BadInput
from symposia_shared.prompts import ChoiceForm, JsonForm, RegexForm
from symposia_worker.engines.formfaults import told


@dataclass(frozen=True, slots=True)
class Limits:
    """What a form may cost. The defaults were measured: none of what they admit took over 0.1 s to compile or 20 ms a token
    with a vocabulary of 49,152 (docs/DECISIONS.md). An engine whose own grammar library is slower gives smaller ones."""

    #: bytes of a schema as JSON
    schema_bytes: int = 32_768
    #: how deep a schema's objects and arrays may nest
    depth: int = 32
    #: the largest number a schema may give as minLength, maxLength, minItems, maxItems, minProperties or maxProperties
    count: int = 1_000_000
    grammar_symbols: int = 50_000
    lexer_fuel: int = 500_000
    step_fuel: int = 50_000
    step_items: int = 20_000
    row_items: int = 2_000
    lexer_states: int = 20_000

    def parser(self) -> LLParserLimits:
        """The same, for llguidance."""
        return LLParserLimits(
            max_items_in_row=self.row_items, initial_lexer_fuel=self.lexer_fuel, step_lexer_fuel=self.step_fuel, step_max_items=self.step_items,
            max_lexer_states=self.lexer_states, max_grammar_size=self.grammar_symbols, verbose_errors=False)


LIMITS = Limits()

#: at most one space where JSON allows any: a small model that may write white space for ever does (outlines' default too).
#: Stated last, so that an ``x-guidance`` in a schema changes none of it.
_JSON_OPTIONS: dict[str, Any] = {"whitespace_pattern": "[ ]?", "lenient": False, "coerce_one_of": False}
_COUNTS = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")
#: tokens a form is tried for when it is compiled: what is empty or explodes does so at its first tokens
_TRIED_TOKENS = 8

_BYTES: list[LLTokenizer] = []


class Vocabulary:
    """A checkpoint's tokens as grammars need them. Takes about a second for 49,000 tokens: once per checkpoint, when first needed.

    ``tokenizer`` is a fast transformers tokenizer, ``size`` the ids that may be chosen, ``stop_ids`` the ends of an answer.
    """

    def __init__(self, tokenizer: Any, *, size: int, stop_ids: frozenset[int]) -> None:
        self.size = size
        ends = sorted(i for i in stop_ids if i < size)
        backend = type(tokenizer.backend_tokenizer).from_str(tokenizer.backend_tokenizer.to_str())
        backend.no_padding()
        backend.no_truncation()
        known = max(tokenizer.get_vocab().values(), default=-1) + 1
        self.tokens = LLTokenizer(backend.to_str(), n_vocab=max(size, known), eos_token=ends or None)

    @staticmethod
    def suits(tokenizer: Any) -> bool:
        """Whether grammars can be enforced over this tokenizer: it is a fast one."""
        return getattr(tokenizer, "backend_tokenizer", None) is not None


class Walk:
    """One answer's way through a grammar."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    def mask(self) -> bytes:
        """The tokens that may come next, a bit each, the lowest first; ends of an answer where it may end here."""
        return self._matcher.compute_bitmask()

    def take(self, token: int) -> None:
        """Go on by a token that the mask allows."""
        self._matcher.consume_token(token)

    @property
    def ended(self) -> bool:
        """Whether nothing can follow: the answer is whole, or the walk has a fault."""
        return self._matcher.is_stopped()

    @property
    def whole(self) -> bool:
        """Whether what was taken so far has the form."""
        return not self._matcher.is_error() and (self._matcher.is_accepting() or str(self._matcher.stop_reason()) == "EndOfSentence")

    @property
    def fault(self) -> str:
        """Why the walk cannot go on, "" where it can: the form has become too costly at this place."""
        return told(self._matcher.get_error()) if self._matcher.is_error() else ""


class Grammar:
    """A form that has passed the gate."""

    def __init__(self, form: JsonForm | RegexForm, source: str, limits: Limits) -> None:
        self.form, self._source, self._limits = form, source, limits

    def start(self, vocabulary: Vocabulary) -> Walk:
        """The beginning of an answer. Raises BadInput where this vocabulary cannot begin it."""
        walk = self._walk(vocabulary.tokens)
        if walk.fault or not any(walk.mask()):
            raise BadInput(f"the {self.form.kind} form cannot begin with any token of this checkpoint ({walk.fault or 'nothing matches it'}).",
                           field="form", remedy="Choose another checkpoint, or another form.")
        return walk

    def accepts(self, text: str) -> bool:
        """Whether a whole text has the form: read byte by byte through the same grammar, and as JSON by Python's own reader."""
        walk = self._walk(_byte_tokens())
        for byte in text.encode():
            walk.take(byte)
        return walk.whole and (not isinstance(self.form, JsonForm) or _is_json(text))

    def _walk(self, tokens: LLTokenizer) -> Walk:
        return Walk(LLMatcher(tokens, self._source, log_level=0, limits=self._limits.parser()))


def compile_form(form: JsonForm | RegexForm | ChoiceForm, limits: Limits = LIMITS) -> Grammar:
    """The grammar of a form. Raises BadInput, whose ``field`` names the part of the form that is wrong, for what no answer can
    match, what cannot be enforced (``not``, ``if``, ``uniqueItems``, remote ``$ref``; look-around, back-references) and what costs
    too much. A choice is no grammar: its options are scored."""
    if isinstance(form, ChoiceForm):
        raise BadInput("a choice is scored, not decoded.", field="form", remedy="Ask an engine that scores choices.")
    if isinstance(form, JsonForm):
        source, field = _of_schema(form.definition, limits), "form.definition"
    else:
        source, field = LLMatcher.grammar_from_regex(form.pattern), "form.pattern"
    grammar = Grammar(form, source, limits)
    if fault := _tried(grammar):
        raise BadInput(f"the {form.kind} form is refused: {fault}.", field=field,
                       remedy="Correct or simplify it; docs/OPERATIONS.md names what can be enforced.")
    return grammar


def _of_schema(schema: dict[str, Any], limits: Limits) -> str:
    deepest = _depth(schema, limits.depth)
    if deepest > limits.depth:
        raise BadInput(f"the schema nests over {limits.depth} deep.", field="form.definition", remedy="Flatten it, or use $defs and $ref.")
    text = json.dumps(schema)
    if len(text) > limits.schema_bytes:
        raise BadInput(f"the schema has {len(text)} bytes, and {limits.schema_bytes} are allowed.", field="form.definition",
                       remedy="Ask for less in one answer.")
    for name, number in _counts(schema):
        if number > limits.count:
            raise BadInput(f"the schema's {name} is {number}, and {limits.count} is the most.", field=f"form.definition.{name}",
                           remedy="Give a smaller number.")
    try:
        return LLMatcher.grammar_from_json_schema(text if schema else '{"type": "object"}', overrides=_JSON_OPTIONS)  # type: ignore[arg-type]
    except ValueError as error:
        raise BadInput(f"the schema is refused: {told(str(error))}.", field="form.definition", remedy="Correct it.") from None


def _tried(grammar: Grammar) -> str:
    """What is wrong with a grammar, found by walking its first bytes; "" where nothing is."""
    walk = grammar._walk(_byte_tokens())
    for _ in range(_TRIED_TOKENS):
        if walk.fault or walk.ended:
            break
        bits = int.from_bytes(walk.mask()[:32], "little")  # the 256 bytes; what follows them is the end
        if not bits:
            if not walk.whole and not walk.fault:
                return "nothing matches it"
            break
        walk.take((bits & -bits).bit_length() - 1)
    return walk.fault


def _byte_tokens() -> LLTokenizer:
    if not _BYTES:
        _BYTES.append(LLTokenizer("byte"))
    return _BYTES[0]


def _depth(schema: Any, most: int) -> int:
    """How deep objects and arrays nest, looked at to one beyond ``most``; no recursion, since a schema may be deeper than Python's stack."""
    level, deep = [schema], 0
    while level and deep <= most:
        level = [inner for x in level for inner in _inside(x) if isinstance(inner, dict | list)]
        deep += 1
    return deep


def _counts(schema: Any) -> Iterator[tuple[str, int]]:
    if isinstance(schema, dict):
        yield from ((name, n) for name in _COUNTS if isinstance(n := schema.get(name), int))
    for inner in _inside(schema):
        yield from _counts(inner)


def _inside(schema: Any) -> list[Any]:
    return list(schema.values()) if isinstance(schema, dict) else schema if isinstance(schema, list) else []


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True
