"""transformers' ``generate``, one request after another in order of arrival: what most scripts do."""

from __future__ import annotations

import time
from typing import Any

from benchmarks.engines.contenders.loading import Options, model_of, options, versions
from benchmarks.engines.contenders.stage import Arrivals, Tell, serve
from benchmarks.engines.wire import Answer


class _FirstToken:
    """A streamer that keeps nothing but when the first new token came."""

    def __init__(self) -> None:
        self.puts = 0
        self.first_at: float | None = None

    def put(self, value: Any) -> None:
        self.puts += 1
        if self.puts == 2:  # the first put is the prompt
            self.first_at = time.time()

    def end(self) -> None:
        pass


class OneByOne:
    """``model.generate`` per request."""

    def __init__(self, asked: Options) -> None:
        self.model = model_of(asked)

    def facts(self) -> dict[str, str]:
        return versions("transformers", "torch")

    def run(self, arrivals: Arrivals, tell: Tell) -> None:
        import torch

        for request in arrivals:
            ids = torch.tensor([request.ids], device=self.model.device)
            seen = _FirstToken()
            out = self.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=request.max_new, do_sample=False, streamer=seen)
            new = tuple(out[0, ids.shape[1]:].tolist())
            tell(Answer(request.id, seen.first_at, time.time(), len(new), ids=new))


if __name__ == "__main__":
    serve(lambda: OneByOne(options()[0]))
