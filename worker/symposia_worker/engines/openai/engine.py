"""The engine ``openai``: models behind an endpoint, as many requests at once as it may have.

The requests run in an event loop on a thread of their own; ``step`` only hands on what has happened, and ``wake`` says that
something has.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import httpx

from symposia_shared.errors import BadInput, Unavailable
from symposia_shared.prompts import RegexForm
from symposia_worker.engines.openai.asking import Model, ask_of
from symposia_worker.engines.openai.call import Call
from symposia_worker.engines.openai.checking import refuse_pattern
from symposia_worker.engines.openai.endpoint import Endpoint, from_environ
from symposia_worker.engines.openai.gate import Gate
from symposia_worker.engines.openai.listing import Listing, capabilities, client_for, headers_for, listed, model_of, trust
from symposia_worker.engines.protocol import PULSE_EVERY_S, Done, Event, Failed, Generate, Load, Loaded

log = logging.getLogger("symposia.engine")

#: seconds for which a listing is believed
LISTED_FOR_S = 30.0


def started(device: str, memory_bytes: int) -> OpenAIEngine:
    """The engine of an engine process; the endpoint and its key come from the environment it was started with."""
    endpoint, key = from_environ()
    for chatty in ("httpx", "httpcore"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    return OpenAIEngine(endpoint, key)


class OpenAIEngine:
    """Serves ``endpoint``."""

    def __init__(self, endpoint: Endpoint, key: str | None = None) -> None:
        self.endpoint, self._key = endpoint, key
        #: called, from another thread, when ``step`` has something to tell
        self.wake: Callable[[], None] = _nobody
        self._models: dict[str, Model] = {}
        self._calls: dict[str, Call] = {}
        self._happened: deque[tuple[Call, Event]] = deque()
        self._listing: tuple[float, Listing] | None = None
        self._loop = asyncio.new_event_loop()
        self._gate = Gate(endpoint.max_concurrency)
        self._client = httpx.AsyncClient(
            base_url=endpoint.url, headers=headers_for(key), verify=trust(), timeout=httpx.Timeout(None, connect=endpoint.patience.connect_s, write=60.0),
            limits=httpx.Limits(max_connections=endpoint.max_concurrency + 8, max_keepalive_connections=endpoint.max_concurrency))
        self._repeats_before = 0
        threading.Thread(target=self._loop.run_forever, name="endpoint", daemon=True).start()

    def load(self, order: Load) -> Loaded:
        """Ask the endpoint for a model. Raises BadInput (no such model, the key is refused) or Unavailable."""
        began = time.monotonic()
        with client_for(self.endpoint, self._key) as client:
            model = model_of(client, self.endpoint, order.checkpoint, self._listed(client))
        self._models[order.checkpoint] = model
        log.info("%s is %s at %s (%s), context %d", order.checkpoint, model.remote, self.endpoint.url, model.server.kind, model.context)
        return Loaded(checkpoint=order.checkpoint, seconds=round(time.monotonic() - began, 3), context=model.context, instruct=model.generates,
                      capabilities=capabilities(model), family=model.server.kind, parameters=model.parameters)

    def _listed(self, client: httpx.Client) -> Listing:
        now = time.monotonic()
        if self._listing is None or now - self._listing[0] > LISTED_FOR_S:
            self._listing = now, listed(client)
        return self._listing[1]

    def unload(self, checkpoint: str) -> Sequence[Event]:
        """Forget a model; its turns fail as ``throttled``, so that they are asked again."""
        self._models.pop(checkpoint, None)
        ids = [i for i, call in self._calls.items() if call.request.checkpoint == checkpoint]
        return [Failed(id=i, cause="throttled", message=f"{checkpoint} was unloaded; ask again.") for i in ids if self.cancel(i)]

    def admit(self, request: Generate) -> None:
        """Send a request as soon as there is room. Raises BadInput for what the server cannot honour, Unavailable while it refuses us."""
        model = self._models.get(request.checkpoint)
        if model is None:
            raise Unavailable(f"{request.checkpoint} is not served by {self.endpoint.url}; load it, then ask again.")
        if why := self._gate.refused:
            raise Unavailable(f"{self.endpoint.url} refuses requests: {self._safe(why)}.")
        if request.id in self._calls:
            raise BadInput(f"request {request.id!r} is in flight already.", field="id", value=request.id, remedy="Ask each turn once.")
        ask = ask_of(request, model)
        if isinstance(request.sampling.form, RegexForm):
            refuse_pattern(request.sampling.form.pattern)
        call = self._calls[request.id] = Call(request, ask, self.endpoint, self._tell, safe=self._safe)
        self._loop.call_soon_threadsafe(self._start, call)

    def _start(self, call: Call) -> None:
        if self._calls.get(call.request.id) is call:
            call.task = self._loop.create_task(call.run(self._client, self._gate))

    def cancel(self, request_id: str) -> bool:
        """Close a request's connection; most servers stop decoding then."""
        call = self._calls.pop(request_id, None)
        if call is None:
            return False
        self._repeats_before += call.repeats
        self._loop.call_soon_threadsafe(lambda: call.task and call.task.cancel())
        return True

    def abandon(self) -> Sequence[str]:
        """Drop every request."""
        ids = list(self._calls)
        for request_id in ids:
            self.cancel(request_id)
        return ids

    def step(self) -> Sequence[Event]:
        """What has happened since the last one."""
        events: list[Event] = []
        while self._happened:
            call, event = self._happened.popleft()
            request_id = call.request.id
            if self._calls.get(request_id) is not call:
                continue  # it was cancelled meanwhile
            if isinstance(event, Done | Failed):
                self._repeats_before += call.repeats
                del self._calls[request_id]
            events.append(event)
        return events

    def _tell(self, call: Call, event: Event) -> None:
        """In the event loop's thread."""
        if isinstance(event, Failed):
            event = event.model_copy(update={"message": self._safe(event.message)[:1000]})
        self._happened.append((call, event))
        if len(self._happened) == 1:
            self.wake()

    def _safe(self, text: str) -> str:
        """A server's words without the key, which some repeat."""
        return text.replace(self._key, "***") if self._key else text

    @property
    def busy(self) -> bool:
        """Whether any request is in flight."""
        return bool(self._calls)

    @property
    def rest_s(self) -> float:
        """0 where there is something to tell; else ``wake`` will end the rest."""
        return 0.0 if self._happened else PULSE_EVERY_S

    @property
    def running(self) -> int:
        """Requests that the server has."""
        return self._gate.running

    @property
    def waiting(self) -> int:
        """Requests that wait for a slot, for the server, or for their next try."""
        return max(0, len(self._calls) - self._gate.running)

    @property
    def forward_passes(self) -> int:
        """Always 0: the server does not tell."""
        return 0

    @property
    def repeats(self) -> int:
        """Tries that were lost so far."""
        return self._repeats_before + sum(call.repeats for call in list(self._calls.values()))

    @property
    def resident(self) -> Mapping[str, int]:
        """The models served, at 0 bytes each."""
        return dict.fromkeys(self._models, 0)

    def close(self) -> None:
        """End the event loop and every connection. An engine process just ends."""
        self.abandon()

        async def ended() -> None:
            await self._client.aclose()
            self._loop.stop()

        def end() -> None:
            self._ending: Any = self._loop.create_task(ended())

        self._loop.call_soon_threadsafe(end)


def _nobody() -> None:
    """Nobody waits."""
