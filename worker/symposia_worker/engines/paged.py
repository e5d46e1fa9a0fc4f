"""One exported form under OpenVINO GenAI's continuous batching: token ids in, tokens with their log-probabilities out.

Its traps (facts: openvino) are closed here or by the checks before: lengths beyond the pool leave requests ignored, ids twice in flight and
stop strings make ``step`` raise for good, an id outside the vocabulary gives noise, stop ids need ``ignore_eos`` off. Its prefix caching is off:
requests admitted together that begin with all tokens of one that has ended are each given its last, half-filled block, and write over one
another in it (openvino-genai 2026.4.1; tests/unit/test_engine_openvino.py).
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from collections.abc import Sequence as Ids
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from symposia_shared.errors import BadInput
from symposia_shared.prompts import Sampling
from symposia_worker.engines.protocol import Mode
from symposia_worker.engines.runtime import genai, openvino, properties

#: tokens of one block of its paged cache on a CPU
BLOCK_TOKENS = 32


@dataclass(frozen=True, slots=True)
class Piece:
    """What a step brought a request: its new tokens, and whether GenAI holds it for ended, or has dropped it."""

    number: int
    tokens: tuple[tuple[int, float], ...]
    ended: bool
    ignored: bool = False


class Paged:
    """A pipeline and the requests in it. ``blocks``: of BLOCK_TOKENS tokens each; its cache never grows beyond them."""

    def __init__(self, folder: Path, mode: Mode, *, blocks: int, rows: int, chunk_tokens: int, threads: int, prefix_caching: bool = False) -> None:
        self.blocks, self.chunk_tokens = blocks, chunk_tokens
        self._ov, self._genai = openvino(), genai()
        scheduler = self._genai.SchedulerConfig()
        scheduler.num_kv_blocks, scheduler.max_num_seqs = blocks, rows
        scheduler.max_num_batched_tokens = max(chunk_tokens, rows)
        scheduler.enable_prefix_caching = prefix_caching
        self._pipeline = self._genai.ContinuousBatchingPipeline(str(folder), scheduler, "CPU", properties(mode, threads))
        self._handles: dict[int, Any] = {}
        self._numbers = 0
        #: sequences in the last step, and steps so far
        self.scheduled = self.steps = 0

    @property
    def tokens(self) -> int:
        """The longest sequence the pool holds, prompt and completion together."""
        return self.blocks * BLOCK_TOKENS

    def add(self, ids: Ids[int], sampling: Sampling, *, max_new: int, stop_ids: Iterable[int] = ()) -> int:
        """Queue a request of checked length and vocabulary; its number. Raises BadInput where GenAI refuses its sampling."""
        import numpy as np

        config = self._config(sampling, max_new=max_new, stop_ids=stop_ids)
        self._numbers += 1
        try:
            handle = self._pipeline.add_request(self._numbers, self._ov.Tensor(np.array([list(ids)], dtype=np.int64)), config)
        except RuntimeError as error:
            raise BadInput(f"OpenVINO GenAI refuses this request: {_last_line(error)}.", field="sampling",
                           remedy="Change its sampling, or serve the checkpoint with the engine torch.") from None
        self._handles[self._numbers] = handle
        return self._numbers

    def drop(self, number: int) -> None:
        """Stop a request; its cache is freed with the next step."""
        handle = self._handles.pop(number, None)
        if handle is not None:
            handle.cancel()

    def step(self) -> list[Piece]:
        """One forward pass; what it brought. What it raises, it goes on raising: make another one then."""
        if not self._pipeline.has_non_finished_requests():
            return [self._piece(number) for number in list(self._handles)]
        self._pipeline.step()
        self.steps += 1
        self.scheduled = int(self._pipeline.get_metrics().scheduled_requests)
        pieces = (self._piece(number) for number in list(self._handles))
        return [p for p in pieces if p.tokens or p.ended or p.ignored]

    def prompt_logprobs(self, ids: Ids[int]) -> list[float]:
        """Log-probabilities of the prompt's tokens from the second on. Only without prefix caching: else those of cached tokens are missing."""
        import numpy as np

        config = self._genai.GenerationConfig()
        config.max_new_tokens, config.echo, config.logprobs = 1, True, 1
        config.ignore_eos, config.stop_token_ids, config.eos_token_id = True, {0}, 0  # as in ``_config``, where nothing ends an answer
        self._numbers += 1
        handle = self._pipeline.add_request(self._numbers, self._ov.Tensor(np.array([list(ids)], dtype=np.int64)), config)
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
        output = handle.read_all()[0]
        if len(output.generated_log_probs) != len(ids) + 1:
            raise RuntimeError(f"{len(output.generated_log_probs)} log-probabilities came for {len(ids)} tokens")
        return list(output.generated_log_probs[1:-1])

    @property
    def busy(self) -> bool:
        """Whether it has anything to do, the freeing of what was dropped included."""
        return bool(self._handles) or bool(self._pipeline.has_non_finished_requests())

    def _config(self, sampling: Sampling, *, max_new: int, stop_ids: Iterable[int]) -> Any:
        config = self._genai.GenerationConfig()
        ends = set(stop_ids)
        # of a model without an end of its own it would take -1, and refuse that; where nothing ends an answer the id given is ignored
        end = min(ends, default=0)
        config.max_new_tokens, config.ignore_eos, config.stop_token_ids, config.eos_token_id = max_new, not ends, ends | {end}, end
        config.logprobs = 1  # of the chosen token, by the model's own distribution
        config.repetition_penalty = sampling.repetition_penalty
        if sampling.temperature > 0:
            config.do_sample, config.temperature, config.top_p, config.min_p = True, sampling.temperature, sampling.top_p, sampling.min_p
            if sampling.top_k:
                config.top_k = sampling.top_k
            config.rng_seed = secrets.randbits(62) if sampling.seed is None else sampling.seed
        return config

    def _piece(self, number: int) -> Piece:
        handle = self._handles[number]
        tokens: list[tuple[int, float]] = []
        while handle.can_read():
            for output in handle.read().values():
                tokens += zip(output.generated_ids, output.generated_log_probs, strict=True)
        status = self._genai.GenerationStatus
        ignored = handle.get_status() == status.IGNORED
        ended = handle.get_status() != status.RUNNING
        if ended:
            del self._handles[number]
        return Piece(number, tuple(tokens), ended, ignored)


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].rstrip(".") if lines else type(error).__name__
