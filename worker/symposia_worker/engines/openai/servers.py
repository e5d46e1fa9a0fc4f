"""What kinds of OpenAI-compatible servers take beyond the common part, and what they leave out.

vLLM: docs.vllm.ai, "OpenAI-Compatible Server" and "Structured Outputs" (``guided_*`` until 0.11, gone in 0.12).
llama.cpp: tools/server/README.md. Ollama: docs/openai.md. A field a server does not know is dropped by most without a word, so
what is not listed here is refused before anything is sent.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from symposia_worker.engines.openai.endpoint import ServerKind

#: how a choice or a regex is asked for
FormWay = Literal["vllm", "grammar", "wrapped"]


@dataclass(frozen=True, slots=True)
class Server:
    """One kind of server."""

    kind: ServerKind
    #: what it calls top_k, min_p and repetition_penalty, and what it is told for "off" (its own default may be another)
    top_k: tuple[str, int] | None = None
    min_p: tuple[str, float] | None = None
    penalty: str | None = None
    #: how many of the last tokens the penalty counts; ours counts them all
    penalty_window: str | None = None
    seeds_below: int = 2**63
    choice: FormWay = "wrapped"
    regex: FormWay | None = None
    #: how /completions is given a schema; /chat/completions of all take response_format
    schema_field: str | None = None
    #: /completions takes the prompt as it stands
    raw: bool = True
    infill: bool = False
    #: /completions can echo the prompt with its log-probabilities
    scores: bool = False
    #: log-probabilities cost little enough to be asked for always; else only where a job asks
    means: bool = False
    #: a test call tells whether a model embeds; else it is not known before it is asked
    embed_is_tried: bool = False


SERVERS: dict[ServerKind, Server] = {
    "vllm": Server("vllm", top_k=("top_k", -1), min_p=("min_p", 0.0), penalty="repetition_penalty", choice="vllm", regex="vllm",
                   schema_field="vllm", scores=True, means=True, embed_is_tried=True),
    # seeds are 32 bits there, and the highest means "any"
    "llamacpp": Server("llamacpp", top_k=("top_k", 0), min_p=("min_p", 0.0), penalty="repeat_penalty", penalty_window="repeat_last_n",
                       seeds_below=2**32 - 1, choice="grammar", schema_field="json_schema", means=True, embed_is_tried=True),
    # its /completions puts the model's template around the prompt
    "ollama": Server("ollama", seeds_below=2**31, raw=False, infill=True),
    "openai": Server("openai", infill=True),
}

_BY_OWNER: dict[str, ServerKind] = {"vllm": "vllm", "llamacpp": "llamacpp", "library": "ollama"}
#: of hosted services: further questions would only be refused
HOSTED = ("openai", "system", "openai-internal", "openai-dev")


def kind_of(owner: str) -> ServerKind | None:
    """The kind of server that lists a model as ``owned_by`` this; None where that tells nothing."""
    return "openai" if owner in HOSTED else _BY_OWNER.get(owner.lower())


def structured(version: str) -> bool:
    """Whether a vLLM of this version takes ``structured_outputs``; older ones took ``guided_*``. An unknown version is taken for new."""
    numbers = [int(n) for n in re.findall(r"\d+", version)[:2]]
    return len(numbers) < 2 or tuple(numbers) >= (0, 11)
