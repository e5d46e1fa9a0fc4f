"""transformers' own continuous batching (``init_continuous_batching``).

Its memory is fixed here to what the requests need: unset it would claim most of the machine's. A prompt that does not fit
would end its thread for all requests. In 5.5.4 on a CPU prompts it had answered before got other tokens when they were asked again
(2 of 3 differed), so no run here repeats a prompt. No token ends an answer (``eos_token_id`` -1).
"""

from __future__ import annotations

import math
import time
from typing import Any

from benchmarks.engines.contenders.loading import Options, model_of, options, versions
from benchmarks.engines.contenders.stage import Arrivals, Tell, serve
from benchmarks.engines.wire import Answer, Request

_BLOCK = 256
#: prompt and decode tokens in one forward; its masked attention costs this times all cached tokens
_BATCH_TOKENS = 256


class TransformersBatching:
    """One manager for the life of the process."""

    def __init__(self, asked: Options) -> None:
        from transformers import GenerationConfig
        from transformers.generation.configuration_utils import ContinuousBatchingConfig

        model = model_of(asked, attn_implementation="sdpa")
        blocks = asked.slots * math.ceil(asked.longest / _BLOCK)
        self.settings = f"sdpa, {blocks} blocks of {_BLOCK}, {_BATCH_TOKENS} tokens a forward"
        tokens = _BATCH_TOKENS if asked.device == "cpu" else None
        config = ContinuousBatchingConfig(block_size=_BLOCK, num_blocks=blocks, max_batch_tokens=tokens)
        self.manager: Any = model.init_continuous_batching(
            generation_config=GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0, max_new_tokens=16),
            continuous_batching_config=config)
        self.manager.start()

    def facts(self) -> dict[str, str]:
        return {**versions("transformers", "torch"), "settings": self.settings}

    def run(self, arrivals: Arrivals, tell: Tell) -> None:
        open_: dict[str, Request] = {}
        while arrivals.to_come or open_:
            if not open_:
                arrivals.wait()
            for r in arrivals.due():
                open_[r.id] = r
                self.manager.add_request(list(r.ids), request_id=r.id, max_new_tokens=r.max_new, record_timestamps=True, eos_token_id=-1)
            result = self.manager.get_result(timeout=0.01)
            if result is not None and (result.is_finished() or result.error):
                tell(_answer(open_.pop(result.request_id), result))
            elif result is None and not self.manager.is_running():
                for r in open_.values():
                    tell(Answer(r.id, None, time.time(), 0, fault="its generation thread has ended"))
                return

    def close(self) -> None:
        """Stop its thread."""
        self.manager.stop(block=True, timeout=10)


def _answer(request: Request, result: Any) -> Answer:
    # its timestamps are of perf_counter
    skew = time.time() - time.perf_counter()
    times = [t + skew for t in result.timestamps or ()]
    ids = tuple(result.generated_tokens)
    return Answer(request.id, times[0] if times else None, times[-1] if times else time.time(), len(ids), ids=ids, fault=result.error)


if __name__ == "__main__":
    serve(lambda: TransformersBatching(options()[0]))
