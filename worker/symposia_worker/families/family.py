"""What a ``model_type`` does its own way. Whatever its tokenizer or its configuration says is not repeated here."""

from __future__ import annotations

from dataclasses import dataclass

#: tokens that end an answer wherever a chat model's tokenizer has them, beside the eos of tokenizer and generation_config
TURN_ENDS = ("<|im_end|>", "<end_of_turn>", "<turn|>", "<|end|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|endoftext|>")


@dataclass(frozen=True, slots=True)
class Family:
    """One ``model_type``, or several that are alike."""

    model_types: tuple[str, ...] = ()
    #: the fields of its configuration that may hold the context length, first found first
    context_fields: tuple[str, ...] = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "n_ctx", "seq_length")
    #: positions that stand for no token: those families count from behind their padding id
    position_offset: int = 0
    #: further tokens that end an answer
    stops: tuple[str, ...] = ()
    #: what marks a thinking model's reasoning in its text; used where the tokenizer knows the closing mark
    reasoning_marks: tuple[str, str] = ("<think>", "</think>")
    #: what stands between the messages of a model without a chat template
    joint: str = "\n\n"


DEFAULT = Family()

FAMILIES = (
    Family(model_types=("mpt",), context_fields=("max_seq_len",)),
    Family(model_types=("xglm",), stops=("<|endofmask|>",)),
    Family(model_types=("roberta", "xlm-roberta", "camembert", "roberta-prelayernorm", "mpnet"), position_offset=2),
    Family(model_types=("gpt2", "gpt_neo", "codegen"), context_fields=("n_positions", "max_position_embeddings")),
)

_BY_TYPE = {name: family for family in FAMILIES for name in family.model_types}


def family_of(model_type: str) -> Family:
    """The family of a ``model_type``; the default one where it has no quirks."""
    return _BY_TYPE.get(model_type, DEFAULT)
