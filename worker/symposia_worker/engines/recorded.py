"""A decode step on a CUDA device as one recorded graph: a device that is fast waits for Python to launch a thousand kernels.

The step is recorded over all slots of one allocation, every row and column of it, so that its shapes stay; what changes from
step to step (newest tokens, lengths, the column written to) is read from one small tensor. Rows that are not live compute along and
are not looked at. The same kernels run as in the step that is launched one by one, over wider windows: greedy float32
tokens are the same. See CUDA Programming Guide, "CUDA Graphs".
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from symposia_worker.engines.attention import decodes_by_rows, rows_of
from symposia_worker.engines.forward import Forward
from symposia_worker.engines.slots import Slots

log = logging.getLogger("symposia.engine")

#: steps of one allocation before it is recorded: recording costs about two, and the first ones set up what kernels need
STEPS_BEFORE = 2


#: a function that runs what it is given, or records it: what it returns runs it again
Record = Callable[[Callable[[], None]], Callable[[], None]]


class Recorded:
    """Decode steps of a batch's ``slots``, recorded anew for each of their allocations."""

    def __init__(self, forward: Forward, slots: Slots, *, record: Record | None = None) -> None:
        self._forward, self._slots, self._record = forward, slots, record or _on_cuda
        self._window = window_of(forward.model.config)
        self._graph: StepGraph | None = None
        self._allocation = self._steps = 0
        self.refused = not decodes_by_rows(forward.model)

    def logits(self, newest: Sequence[int], lengths: Sequence[int]) -> torch.Tensor | None:
        """(rows, vocabulary) after each row's ``newest`` token behind ``lengths`` cached ones; None where the step is to be launched kernel by kernel."""
        if self.refused or self._slots.shape[1] > self._window:
            return None
        if self._allocation != self._slots.allocation:
            self._graph, self._allocation, self._steps = None, self._slots.allocation, 0
        if self._graph is None:
            self._steps += 1
            if self._steps <= STEPS_BEFORE:
                return None
            self._graph = self._recording()
        return None if self._graph is None else self._graph.step(newest, lengths)

    def forget(self) -> None:
        """Give back what a recording holds."""
        self._graph = None

    def _recording(self) -> StepGraph | None:
        try:
            return StepGraph(self._forward, self._slots, self._record)
        except Exception as error:  # the seam to a model that asks the device something in the middle of a step
            self.refused = True
            log.warning("decode steps of %s cannot be recorded (%s); they are launched kernel by kernel", type(self._forward.model).__name__,
                        " ".join(str(error).split())[:200])
            return None


class StepGraph:
    """One decode step over every slot of an allocation."""

    def __init__(self, forward: Forward, slots: Slots, record: Record) -> None:
        self._forward, self._slots = forward, slots
        self._height, self._width = slots.shape
        device = forward.model.device
        self._sent = torch.zeros(2 * self._height + 1, dtype=torch.long, device=device)
        self._host = torch.zeros_like(self._sent, device="cpu", pin_memory=device.type == "cuda")
        self._columns = torch.arange(self._width, device=device)
        self._out = torch.empty(0)
        self._replay = record(self._pass)

    def step(self, newest: Sequence[int], lengths: Sequence[int]) -> torch.Tensor:
        """As ``Recorded.logits``. The result is written over by the next step."""
        rows, height = len(newest), self._height
        self._host[:rows] = torch.tensor(newest)
        self._host[height : height + rows] = torch.tensor(lengths)
        self._host[height + rows : 2 * height] = 0
        self._host[2 * height] = self._slots.end
        self._sent.copy_(self._host, non_blocking=True)
        self._replay()
        self._forward.passes += 1
        return self._out[:rows]

    def _pass(self) -> None:
        ids, lengths, end = self._sent[: self._height], self._sent[self._height : -1], self._sent[-1:]
        seen = (self._columns <= end) & (self._columns >= end - lengths[:, None])
        with self._slots.whole(end), rows_of([self._width] * self._height):
            self._out = self._forward(ids[:, None], seen[:, None, None, :], lengths[:, None], self._slots.cache, keep=1)[:, -1]
        self._forward.passes -= 1


def window_of(config: Any) -> float:
    """The widest window in which a model's every layer looks at every token; the recorded step knows no local attention."""
    text = config.get_text_config()
    local = [getattr(text, name, None) for name in ("sliding_window", "attention_chunk_size")]
    return min((float(n) for n in local if n), default=math.inf)


def _on_cuda(run: Callable[[], None]) -> Callable[[], None]:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay
