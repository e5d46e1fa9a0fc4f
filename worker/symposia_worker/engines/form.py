"""An exported form as its folder describes it: context, tokenizer, ends. Nothing of it is loaded here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from symposia_shared.errors import BadInput, Damaged
from symposia_worker.engines.loading import line_of, load_tokenizer
from symposia_worker.families import Family, Renderer, family_of
from symposia_worker.families.kinds import NO_LIMIT, Kind


@dataclass(frozen=True, slots=True)
class ServedForm:
    """What admission looks at, by the names of ``loading.Model``."""

    checkpoint: str
    model_type: str
    renderer: Renderer
    #: the model's own, cut to what the pool holds: tokens of prompt and completion together
    context: int
    #: ids from there on are not its tokenizer's, or not in its embedding
    embeddings: int
    kind: Kind = "generate"


def read_form(checkpoint: str, folder: Path) -> ServedForm:
    """The form in ``folder``, with the model's own context. Raises BadInput or Damaged."""
    config = _config(checkpoint, folder)
    family = family_of(str(config["model_type"]))
    kind: Kind = "seq2seq" if config.get("is_encoder_decoder") else "generate"
    renderer = Renderer(family, load_tokenizer(checkpoint, folder), eos=_eos(folder, config), keeps_end=kind == "seq2seq")
    return ServedForm(checkpoint, str(config["model_type"]), renderer, context=_context(checkpoint, config, family, renderer.tokenizer),
                      embeddings=min(renderer.vocabulary, int(config.get("vocab_size") or renderer.vocabulary)), kind=kind)


def _config(checkpoint: str, folder: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        _ = config["model_type"]
    except (OSError, ValueError, KeyError) as error:
        raise Damaged(f"{checkpoint}'s config.json cannot be read ({line_of(error)}). Export it again.") from None
    return config


def _context(checkpoint: str, config: Mapping[str, Any], family: Family, tokenizer: Any) -> int:
    """Tokens of prompt and completion together; of an encoder-decoder, whose tokenizer may tell it, those of each.

    Rope that changes with the sequence's length is exact within the length it was trained with.
    """
    length = next((n for name in family.context_fields if isinstance(n := config.get(name), int) and n > 0), 0)
    limit = int(getattr(tokenizer, "model_max_length", 0) or 0)
    if not length and config.get("is_encoder_decoder") and 0 < limit < NO_LIMIT:
        return limit
    if not length:
        raise BadInput(f"{checkpoint}'s config names no context length.", field="folder", remedy="Add max_position_embeddings to it.")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if rope.get("rope_type", rope.get("type")) in ("dynamic", "longrope"):
        return min(length, int(rope.get("original_max_position_embeddings") or config.get("original_max_position_embeddings") or length))
    return length


def _eos(folder: Path, config: Mapping[str, Any]) -> list[int]:
    """The ends that configuration and generation_config name."""
    try:
        generation = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        generation = {}
    found: set[int] = set()
    for given in (config.get("eos_token_id"), generation.get("eos_token_id")):
        found.update([given] if isinstance(given, int) else given or ())
    return sorted(i for i in found if i >= 0)  # an exporter writes -1 for none
