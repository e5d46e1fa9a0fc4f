"""What an exporter tells: the values that cross from its process to ours. Nothing heavy is imported here."""

from __future__ import annotations

from pydantic import Field

from symposia_shared.catalogue import FormMode
from symposia_shared.values import Value

#: ``model_type``s whose forms gave torch's tokens under GenAI's continuous batching, beyond any local window too. It is silently wrong for
#: mpt (ALiBi) and for gpt_neo (past its local window), and refuses xglm (facts: openvino).
ALLOWED = ("llama", "qwen2", "phi", "phi3", "stablelm", "codegen", "gemma3_text")

#: encoder-decoders whose forms gave torch's tokens in our own lane
ALLOWED_PAIRS = ("t5",)

#: a form whose perplexity on ``passage.txt`` is worse than torch float32's by more than this share is refused
MOST_LOSS = 0.01


def suits(model_type: str, kind: str) -> bool:
    """Whether forms are made of a checkpoint: ``kind`` is ``generate``, ``seq2seq`` or ``embed``."""
    return model_type in {"generate": ALLOWED, "seq2seq": ALLOWED_PAIRS}.get(kind, ())


class FormReport(Value):
    """One form of a checkpoint, measured where it was made; or why there is none."""

    mode: FormMode
    #: None: it was made. Else why not, and what to do
    refused: str | None = None
    #: of weights and model file
    bytes: int = Field(0, ge=0)
    #: on ``passage.txt``, as served; of an encoder-decoder, of every second piece of it given the one before
    perplexity: float | None = None
    #: torch's in float32 on the same text
    perplexity_float32: float | None = None
    #: tokens of completion in a second, ``rows`` requests at once, on ``threads`` cores of ``processor``
    tokens_per_s: float | None = None
    rows: int = 0
    threads: int = 0
    processor: str = ""
    #: what it multiplies activations in, as the plugin reports: ``f32`` or ``bf16``
    activations: str = ""
    cache: str = ""

    @property
    def loss(self) -> float | None:
        """By what share its perplexity is worse than torch float32's."""
        return None if not self.perplexity or not self.perplexity_float32 else self.perplexity / self.perplexity_float32 - 1
