"""What kind of model a configuration describes, and how long a text it reads: told before anything is loaded."""

from __future__ import annotations

from typing import Any, Literal

from symposia_worker.families.family import Family, family_of

#: ``generate``: a decoder; ``embed``: an encoder; ``seq2seq``: an encoder and a decoder
Kind = Literal["generate", "embed", "seq2seq"]

#: by how the class ends that a checkpoint was saved from: what forms are made of
NAMED: dict[str, Kind] = {"ForCausalLM": "generate", "LMHeadModel": "generate", "ForConditionalGeneration": "seq2seq"}

#: Encoder-decoders whose ``generate`` forces no token and has no positions but relative ones (Raffel et al. 2020, arXiv:1910.10683)
SEQ2SEQ_TYPES = ("t5", "mt5", "umt5")

#: rope that changes with the longest sequence of a batch: exact only within the length it was trained with
_LENGTH_DEPENDENT_ROPE = ("dynamic", "longrope")

#: a tokenizer without a limit says 10**30
NO_LIMIT = 10**9


def architecture_of(config: Any) -> str:
    """The class the checkpoint was saved from; "" where its config names none."""
    return str((config.architectures or [""])[0])


def named_kind(architecture: str) -> Kind | None:
    """The kind that a class names itself to be; None for one that is named as neither."""
    return next((kind for end, kind in NAMED.items() if architecture.endswith(end)), None)


def kind_of(config: Any) -> Kind | None:
    """The kind, by the class the checkpoint was saved from; None for one that is not served.

    The class decides, for transformers loads an encoder as a generator without a word, and it emits noise.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES

    name, model_type = architecture_of(config), config.model_type
    if config.is_encoder_decoder:
        return "seq2seq" if model_type in SEQ2SEQ_TYPES and named_kind(name) == "seq2seq" else None
    if model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and named_kind(name) == "generate":
        return "generate"
    # the body of a decoder is a ...Model as well, and the mean over its states is no embedding
    if model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and name.endswith(("Model", "ForMaskedLM")):
        return "embed"
    return None


def context_of(config: Any, tokenizer: Any = None) -> int | None:
    """The longest sequence in tokens: of prompt and completion together, or, of an encoder-decoder, of the prompt.

    None where neither the configuration nor the tokenizer names one.
    """
    family = family_of(config.model_type)
    length = _configured(config, family)
    limit = int(getattr(tokenizer, "model_max_length", 0) or 0)
    if length is None:
        return limit if 0 < limit < NO_LIMIT else None
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    if isinstance(rope, dict) and rope.get("rope_type", rope.get("type")) in _LENGTH_DEPENDENT_ROPE:
        trained = rope.get("original_max_position_embeddings") or getattr(config, "original_max_position_embeddings", None)
        return min(length, int(trained)) if trained else length
    return length


def _configured(config: Any, family: Family) -> int | None:
    for name in family.context_fields:
        value = getattr(config, name, None)
        if isinstance(value, int) and value > family.position_offset:
            return value - family.position_offset
    return None
