"""Our engine process, asked as a pool asks it. The process is a child of this one; no queue, no store."""

from __future__ import annotations

import inspect
import threading
import time
from typing import Any

from benchmarks.engines.contenders.loading import Options, options, versions
from benchmarks.engines.contenders.stage import Arrivals, Tell, serve
from benchmarks.engines.wire import Answer, Request
from symposia_shared.prompts import Message, Sampling
from symposia_shared.turns import Abstention, Completion, Turn
from symposia_worker.engines.client import EngineProcess

_CHECKPOINT = "bench"


class Ours:
    """One engine process with one resident checkpoint."""

    def __init__(self, asked: Options, *, engine: str, mode: str, memory_bytes: int) -> None:
        self.process = EngineProcess(asked.device, memory_bytes, threads=asked.threads, start_within_s=300.0)
        self.process.start()
        order: dict[str, Any] = {"dtype": asked.dtype, "engine": engine}
        if "mode" in inspect.signature(self.process.load).parameters:
            order["mode"] = mode
        elif mode != "exact":
            raise SystemExit(f"EngineProcess.load takes no mode yet, so {engine} {mode} cannot be measured.")
        self.loaded = self.process.load(_CHECKPOINT, asked.folder, **order)
        self.called = f"{engine} {mode}"

    def facts(self) -> dict[str, str]:
        return {**versions("torch", "transformers", "openvino-genai"), "engine": self.called, "load": f"{self.loaded.seconds:.1f} s",
                "weights": f"{self.loaded.bytes / 1e6:.0f} MB"}

    def run(self, arrivals: Arrivals, tell: Tell) -> None:
        over = threading.Semaphore(0)

        def told(answer: Answer) -> None:
            tell(answer)
            over.release()

        asked = 0
        for request in arrivals:
            self._ask(request, told)
            asked += 1
        for _ in range(asked):
            over.acquire()

    def _ask(self, request: Request, tell: Tell) -> None:
        first: list[float] = []
        turn = Turn(member="bench", model=_CHECKPOINT, messages=(Message(role="user", content=request.text),),
                    sampling=Sampling(max_tokens=request.max_new))
        self.process.generate(request.id, turn, first.append, lambda reply: tell(answer_from(request, reply, first)))

    def close(self) -> None:
        """End the process."""
        self.process.stop()


def answer_from(request: Request, reply: Completion | Abstention, first: list[float]) -> Answer:
    """Our reply as the wire has it."""
    now = time.time()
    if isinstance(reply, Abstention):
        return Answer(request.id, first[0] if first else None, now, 0, fault=f"{reply.cause}: {reply.message}")
    fault = None
    if reply.usage.prompt_tokens != len(request.ids):
        fault = f"it read {reply.usage.prompt_tokens} prompt tokens, where the others read {len(request.ids)}"
    return Answer(request.id, first[0] if first else None, now, reply.usage.completion_tokens, text=reply.text, fault=fault)


def main() -> None:
    """The command line."""
    asked, more = options(("--engine", "torch"), ("--mode", "exact"), ("--memory", str(8 << 30)))
    serve(lambda: Ours(asked, engine=more.engine, mode=more.mode, memory_bytes=int(more.memory)))


if __name__ == "__main__":
    main()
