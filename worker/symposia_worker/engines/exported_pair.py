"""An exported encoder and decoder run by OpenVINO as they are, the decoder's keys and values in its own states.

Optimum writes the decoder so that its cross attention's keys and values are states too, made of the encoder's at the first forward pass of a request
and kept: ``beam_idx`` moves those of its own attention only, so rows that leave are taken out of the others by us.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from symposia_worker.engines.form import ServedForm
from symposia_worker.engines.pair import Answers, start_of
from symposia_worker.engines.protocol import Mode
from symposia_worker.engines.runtime import DECODER_XML, ENCODER_XML, openvino, pair_properties
from symposia_worker.engines.seq2seq import Seq2SeqLane

#: names of the states that ``beam_idx`` moves
_OWN = "past_key_values"


class ExportedPair:
    """The form in ``folder``: float32 throughout, or with 8-bit weights. Raises RuntimeError where it makes no model, BadInput without a start token."""

    def __init__(self, checkpoint: str, folder: Path, mode: Mode, *, threads: int) -> None:
        config, generation = _json(folder / "config.json"), _json(folder / "generation_config.json")
        self.device = torch.device("cpu")
        self.start = start_of(checkpoint, generation, config)
        self.pad: int = config.get("pad_token_id") or 0
        layers = config.get("num_decoder_layers") or config["num_layers"]
        self.cache_bytes_per_token: int = 2 * layers * config["num_heads"] * config["d_kv"] * 4
        self.state_bytes_per_token: int = 2 * config["d_model"] * 4  # ours, and the copy among the decoder's states
        self.tolerance = 1e-3 if mode == "exact" else 0.1
        core = openvino().Core()
        self._encoder, self._decoder = (core.compile_model(core.read_model(folder / name), "CPU", pair_properties(threads))
                                        for name in (ENCODER_XML, DECODER_XML))
        self._reader = self._encoder.create_infer_request()

    @property
    def precisions(self) -> tuple[str, str]:
        """In what the plugin says it computes, and keeps keys and values."""
        activations, cache = (str(getattr(value, "get_type_name", lambda v=value: v)()) for value in (
            self._decoder.get_property(name) for name in ("INFERENCE_PRECISION_HINT", "KV_CACHE_PRECISION")))
        return activations, cache

    def encode(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """By the encoder's model."""
        out = self._reader.infer({"input_ids": ids.numpy(), "attention_mask": mask.numpy()})["last_hidden_state"]
        return torch.from_numpy(np.array(out))

    def answers(self, states: torch.Tensor, mask: torch.Tensor) -> Answers:
        """A request of their own to the decoder's model."""
        return _Answers(self, self._decoder.create_infer_request(), states, mask)

    def scores(self, source: list[int], written: list[int]) -> torch.Tensor:
        """All of ``written`` at once, behind nothing."""
        ids = torch.tensor([source])
        alone = _Answers(self, self._decoder.create_infer_request(), self.encode(ids, torch.ones_like(ids)), torch.ones_like(ids))
        return alone.forward(torch.tensor([written]))[0]


@dataclass(slots=True)
class PairResident:
    """A resident encoder-decoder of the engine openvino. ``weights``: bytes."""

    served: ServedForm
    lane: Seq2SeqLane
    weights: int
    parameters: int

    @property
    def bytes(self) -> int:
        """Of its weights."""
        return self.weights

    @property
    def held_bytes(self) -> int:
        """Weights, and what its micro-batches may come to hold."""
        return self.weights + self.lane.cache_bytes

    @property
    def cache_bytes_per_token(self) -> int:
        """Of its keys and values."""
        return self.lane.cache_bytes_per_token

    @property
    def running(self) -> int:
        """Sequences being read or written."""
        return self.lane.running

    @property
    def busy(self) -> bool:
        """Whether it has anything to advance."""
        return self.lane.busy

    @property
    def in_flight(self) -> list[str]:
        """Ids of its requests."""
        return self.lane.ids

    @property
    def steps(self) -> int:
        """Forward passes so far."""
        return self.lane.forward_passes


class _Answers:
    def __init__(self, pair: ExportedPair, request: Any, states: torch.Tensor, mask: torch.Tensor) -> None:
        self._pair, self._request, self._ov = pair, request, openvino()
        self._states, self._mask = np.ascontiguousarray(states.numpy()), np.ascontiguousarray(mask.numpy())
        self._beam = np.arange(len(self._states), dtype=np.int32)
        self._written = 0

    @property
    def bytes(self) -> int:
        rows, longest = (int(n) for n in self._mask.shape)
        pair = self._pair
        return rows * (longest * pair.state_bytes_per_token + (longest + self._written) * pair.cache_bytes_per_token)

    def advance(self, newest: torch.Tensor) -> torch.Tensor:
        return self.forward(newest)[:, -1]

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Logits (rows, places, vocabulary) of ``ids`` (rows, places)."""
        given: dict[str, npt.NDArray[Any]] = {"input_ids": ids.numpy(), "encoder_hidden_states": self._states,
                                              "encoder_attention_mask": self._mask, "beam_idx": self._beam}
        logits = torch.from_numpy(np.array(self._request.infer(given, share_inputs=True)["logits"], dtype=np.float32))
        self._written += ids.shape[1]
        self._beam = np.arange(len(self._states), dtype=np.int32)
        return logits

    def keep(self, rows: Sequence[int]) -> None:
        chosen = np.array(rows, dtype=np.int64)
        self._states, self._mask, self._beam = (np.ascontiguousarray(x[chosen]) for x in (self._states, self._mask, self._beam))
        for state in self._request.query_state() if self._written else ():
            if not state.name.startswith(_OWN):
                state.state = self._ov.Tensor(np.ascontiguousarray(np.array(state.state.data)[chosen]))


def _json(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found
    except (OSError, ValueError):
        return {}
