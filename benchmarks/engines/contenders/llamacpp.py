"""llama.cpp's own server, from the xllamacpp wheel, asked over HTTP on loopback with streaming. Its build uses AVX2 at most."""

from __future__ import annotations

import http.client
import json
import threading
import time
from typing import Any

from benchmarks.engines.contenders.loading import Options, options, versions
from benchmarks.engines.contenders.stage import Arrivals, Tell, serve
from benchmarks.engines.wire import Answer, Request

_LOOPBACK = "127.0.0.1"


class LlamaServer:
    """The server in this process; its threads are C++."""

    def __init__(self, asked: Options) -> None:
        import xllamacpp

        given = xllamacpp.CommonParams()
        given.model.path = asked.folder
        given.hostnames, given.port = [_LOOPBACK], 0
        # the context is shared by the slots (kv_unified)
        given.n_parallel, given.n_ctx, given.kv_unified = asked.slots, asked.slots * asked.longest, True
        given.cpuparams.n_threads = given.cpuparams_batch.n_threads = asked.threads
        given.n_threads_http = asked.slots + 8
        given.cont_batching, given.warmup, given.n_gpu_layers, given.ui, given.verbosity = True, True, 0, False, 0
        given.cache_ram_mib = 0
        self.server: Any = xllamacpp.Server(given)
        self.slots = asked.slots
        address = str(self.server.listening_address)
        self.port = int(address.rsplit(":", 1)[-1].rstrip("/"))

    def facts(self) -> dict[str, str]:
        return {**versions("xllamacpp"), "build": "AVX2", "settings": f"{self.slots} slots, f16 cache and prompt cache as by default"}

    def run(self, arrivals: Arrivals, tell: Tell) -> None:
        threads = []
        for request in arrivals:
            threads.append(threading.Thread(target=self._ask, args=(request, tell)))
            threads[-1].start()
        for thread in threads:
            thread.join()

    def _ask(self, request: Request, tell: Tell) -> None:
        body = {"prompt": list(request.ids), "n_predict": request.max_new, "temperature": 0.0, "ignore_eos": True, "stream": True,
                "return_tokens": True}
        ids: list[int] = []
        first_at: float | None = None
        fault: str | None = None
        connection = http.client.HTTPConnection(_LOOPBACK, self.port, timeout=3600)
        try:
            connection.request("POST", "/completion", json.dumps(body), {"Content-Type": "application/json"})
            response = connection.getresponse()
            if response.status != 200:
                fault = response.read(500).decode(errors="replace")
            for line in response if fault is None else ():
                if line.startswith(b"data: ") and (tokens := json.loads(line[6:]).get("tokens")):
                    first_at = first_at or time.time()
                    ids += tokens
        except (OSError, ValueError, http.client.HTTPException) as error:
            fault = f"{type(error).__name__}: {error}"
        finally:
            connection.close()
        tell(Answer(request.id, first_at, time.time(), len(ids), ids=tuple(ids), fault=fault))


if __name__ == "__main__":
    serve(lambda: LlamaServer(options()[0]))
