"""A scripted OpenAI-compatible server, which plays the faults that real ones have, on a loopback port of its own."""

from __future__ import annotations

import asyncio
import json
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

#: a step of an answer: bytes are sent, a number is a pause in seconds
Step = bytes | float
#: the connection is reset; nothing more is ever sent
RESET, HANG = -1.0, -2.0


@dataclass(frozen=True, slots=True)
class Seen:
    """A request the server got."""

    method: str
    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    raw: bytes


@dataclass(frozen=True, slots=True)
class Says:
    """An answer: a status line, headers, and steps. ``endless``: the last step again and again."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    steps: Sequence[Step] = ()
    endless: bool = False


def event(piece: object) -> bytes:
    """One event of a stream."""
    return f"data: {json.dumps(piece)}\n\n".encode()


def delta(text: str | None = None, finish: str | None = None, **more: object) -> bytes:
    """A piece of a chat."""
    return event({"choices": [{"index": 0, "delta": {**({} if text is None else {"content": text}), **more}, "finish_reason": finish}]})


def usage(prompt: object, completion: object) -> bytes:
    """The last piece."""
    return event({"choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": completion}})


DONE = b"data: [DONE]\n\n"


def streamed(*steps: Step, endless: bool = False) -> Says:
    """A stream."""
    return Says(headers={"Content-Type": "text/event-stream"}, steps=steps, endless=endless)


def chat(*words: str, finish: str = "stop", each_s: float = 0.0) -> Says:
    """A whole streamed answer with its usage."""
    steps: list[Step] = [delta(role="assistant", content="")]
    for word in words:
        steps += [each_s, delta(word)]
    return streamed(*steps, delta(finish=finish), usage(7, len(words)), DONE)


def plain(piece: object, status: int = 200, **headers: str) -> Says:
    """A JSON body."""
    return Says(status, {"Content-Type": "application/json", **{k.replace("_", "-"): v for k, v in headers.items()}}, (json.dumps(piece).encode(),))


def error(status: int, message: str, **headers: str) -> Says:
    """An error as OpenAI words it."""
    return plain({"error": {"message": message, "type": "some_error", "code": None}}, status, **headers)


class StandIn:
    """The server. ``then`` is what it says next, ``always`` what it says once that is used up."""

    def __init__(self, *, models: Sequence[dict[str, Any]] = ({"id": "lab/one", "owned_by": "vllm", "max_model_len": 100},)) -> None:
        self.models: Says | Sequence[dict[str, Any]] = models
        self.own: dict[str, object] = {}
        self.then: deque[Says] = deque()
        self.always: Says | Callable[[Seen], Says] = chat("hello", " there")
        #: what it says of texts to embed
        self.embeds = error(404, "this model does not embed")
        #: while True, no request is answered
        self.held = False
        self.seen: list[Seen] = []
        self.in_flight = self.most_in_flight = self.hung_up = 0
        self.url = ""

    @property
    def asked(self) -> list[Seen]:
        """The requests for an answer, those for vectors left out."""
        return [s for s in self.seen if s.method == "POST" and s.path != "/v1/embeddings"]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            first, *lines = head.split("\r\n")
            headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines if line)}
            raw = await reader.readexactly(int(headers.get("content-length", "0")))
            method, path, _ = first.split(" ")
            seen = Seen(method, path, headers, json.loads(raw) if raw else {}, raw)
            self.seen.append(seen)
            await self._answer(seen, reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _answer(self, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if seen.method == "GET" or seen.path == "/v1/embeddings":
            await self._say(self.embeds if seen.method == "POST" else self._told(seen.path), writer)
            return
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        says = self.then.popleft() if self.then else self.always(seen) if callable(self.always) else self.always
        gone = asyncio.create_task(reader.read(1))
        saying = asyncio.create_task(self._in_time(says, writer))
        await asyncio.wait([gone, saying], return_when=asyncio.FIRST_COMPLETED)
        self.hung_up += not saying.done()
        self.in_flight -= 1
        gone.cancel()
        saying.cancel()
        await asyncio.gather(gone, saying, return_exceptions=True)

    async def _in_time(self, says: Says, writer: asyncio.StreamWriter) -> None:
        while self.held:
            await asyncio.sleep(0.02)
        await self._say(says, writer)

    def _told(self, path: str) -> Says:
        if path == "/v1/models":
            return self.models if isinstance(self.models, Says) else plain({"object": "list", "data": list(self.models)})
        return plain(self.own[path]) if path in self.own else error(404, "no such place")

    async def _say(self, says: Says, writer: asyncio.StreamWriter) -> None:
        head = [f"HTTP/1.1 {says.status} X", "Connection: close", *(f"{k}: {v}" for k, v in says.headers.items())]
        writer.write("\r\n".join([*head, "Transfer-Encoding: chunked", "", ""]).encode())
        for step in says.steps:
            if step == RESET:
                writer.transport.abort()
                return
            if step == HANG:
                await asyncio.sleep(3600)
            elif isinstance(step, bytes):
                await _chunk(writer, step)
            else:
                await writer.drain()
                await asyncio.sleep(step)
        while says.endless:
            last = says.steps[-1]
            assert isinstance(last, bytes)
            await _chunk(writer, last)
            await asyncio.sleep(0.001)
        writer.write(b"0\r\n\r\n")
        await writer.drain()


async def _chunk(writer: asyncio.StreamWriter, step: bytes) -> None:
    writer.write(f"{len(step):x}\r\n".encode() + step + b"\r\n")
    await writer.drain()


@contextmanager
def stand_in(**fields: Any) -> Iterator[StandIn]:
    """A scripted server, from ready to stopped."""
    server, loop, ready = StandIn(**fields), asyncio.new_event_loop(), threading.Event()

    async def begin() -> None:
        listening = await asyncio.start_server(server._serve, "127.0.0.1", 0)
        server.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/v1"
        ready.set()

    def live() -> None:
        loop.create_task(begin())
        loop.run_forever()
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()

    thread = threading.Thread(target=live, daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
