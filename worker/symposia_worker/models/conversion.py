"""Whether a published folder is plain already, told by its files' names and its JSON alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from symposia_worker.families.grouped_mpt import is_grouped


def reasons_to_convert(folder: Path, *, without_template: bool = False) -> tuple[str, ...]:
    """What is not plain about ``folder``, in words; empty where it can be stored as it is.

    ``without_template``: a chat template is one of the reasons.
    """
    config, tokenizer = _json(folder / "config.json"), _json(folder / "tokenizer_config.json")
    reasons = []
    if not any(folder.glob("*.safetensors")) and any(folder.glob("pytorch_model*.bin")):
        reasons.append("its weights are pickles")
    if is_grouped(config):
        reasons.append("its MPT shares key and value heads")
    if not (folder / "tokenizer.json").is_file():
        reasons.append("it has no tokenizer.json")
    if without_template and (tokenizer.get("chat_template") or (folder / "chat_template.jinja").is_file()):
        reasons.append("it is a base model with a chat template")
    return tuple(reasons)


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
