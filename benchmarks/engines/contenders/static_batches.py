"""transformers' ``generate`` on left-padded batches of what has arrived; a batch ends when its longest answer does."""

from __future__ import annotations

import time
from typing import Any

from benchmarks.engines.contenders.loading import Options, model_of, options, versions
from benchmarks.engines.contenders.stage import Arrivals, Tell, serve
from benchmarks.engines.wire import Answer, Request


class StaticBatches:
    """Batches of at most ``slots``, in order of arrival."""

    def __init__(self, asked: Options) -> None:
        self.model, self.slots = model_of(asked), asked.slots

    def facts(self) -> dict[str, str]:
        return {**versions("transformers", "torch"), "batch": f"{self.slots}, left-padded"}

    def run(self, arrivals: Arrivals, tell: Tell) -> None:
        while arrivals.to_come:
            arrivals.wait()
            self._batch(arrivals.due(self.slots), tell)

    def _batch(self, requests: list[Request], tell: Tell) -> None:
        import torch
        from transformers import StoppingCriteriaList

        longest = max(len(r.ids) for r in requests)
        ids = torch.zeros(len(requests), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, r in enumerate(requests):
            ids[row, longest - len(r.ids):] = torch.tensor(r.ids)
            mask[row, longest - len(r.ids):] = 1
        ids, mask = ids.to(self.model.device), mask.to(self.model.device)
        first: list[float] = []

        def never(tokens: Any, scores: Any, **_: Any) -> Any:
            if not first:
                first.append(time.time())
            return torch.zeros(tokens.shape[0], dtype=torch.bool, device=tokens.device)

        out = self.model.generate(ids, attention_mask=mask, max_new_tokens=max(r.max_new for r in requests), do_sample=False,
                                  stopping_criteria=StoppingCriteriaList([never]))
        now = time.time()
        for row, r in enumerate(requests):
            new = tuple(out[row, longest:longest + r.max_new].tolist())
            tell(Answer(r.id, first[0], now, len(new), ids=new))


if __name__ == "__main__":
    serve(lambda: StaticBatches(options()[0]))
