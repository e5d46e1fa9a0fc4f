"""Infill: how the publishers of code models put a hole in a text to them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Infill:
    """A form of prompt in which the model writes what stands between a prefix and a suffix, and the tokens that end its answer."""

    before: str
    between: str
    after: str
    ends: tuple[str, ...]
    #: tokens a tokenizer must have for this form to be its own
    marks: tuple[str, ...]

    def prompt(self, prefix: str, suffix: str) -> str:
        """The text that asks for what is between."""
        return f"{self.before}{prefix}{self.between}{suffix}{self.after}"


def _prefix_suffix_middle(before: str, between: str, after: str, *further: str) -> Infill:
    """The form of Bavarian et al. 2022 (arXiv:2207.14255) with the tokens of one tokenizer; a mark in the answer ends it."""
    marks = (before, between, after)
    return Infill(before, between, after, ends=(*marks, *further), marks=marks)


#: in the order in which they are looked for: CodeGen2.5's tokenizer has StarCoder's tokens beside its own
FORMS = (
    # Fried et al. 2022 (arXiv:2204.05999); with the second mask the suffix is not taken for the end of the file
    Infill("", "<|mask:0|>", "<|mask:1|><|mask:0|>", ends=("<|endofmask|>",), marks=("<|mask:0|>", "<|mask:1|>", "<|endofmask|>")),
    # Nijkamp et al. 2023 (arXiv:2305.02309), and the model cards of CodeGen2 and CodeGen2.5
    Infill("", "<mask_1>", "<|endoftext|><sep><mask_1>", ends=("<eom>",), marks=("<mask_1>", "<sep>", "<eom>")),
    _prefix_suffix_middle("<fim_prefix>", "<fim_suffix>", "<fim_middle>", "<file_sep>"),  # StarCoder (arXiv:2305.06161)
    _prefix_suffix_middle("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|fim_pad|>", "<|file_sep|>", "<|repo_name|>",
                          "<|file_separator|>"),  # Qwen2.5-Coder (arXiv:2409.12186), CodeGemma (arXiv:2406.11409)
)


def infill_of(tokenizer: Any) -> Infill | None:
    """The form all of whose marks are single tokens of ``tokenizer``; None where there is none."""
    vocabulary = tokenizer.get_vocab()

    def is_one_token(mark: str) -> bool:
        return mark in vocabulary and tokenizer(mark, add_special_tokens=False)["input_ids"] == [vocabulary[mark]]

    return next((form for form in FORMS if all(map(is_one_token, form.marks))), None)
