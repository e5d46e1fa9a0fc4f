"""One turn's way to its answer: as many tries as it takes and as it may have, each a request of its own."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any

import httpx

from symposia_shared.turns import Cause, Completion, Timing, Usage
from symposia_worker.engines.openai.asking import Ask
from symposia_worker.engines.openai.checking import checked
from symposia_worker.engines.openai.endpoint import Endpoint
from symposia_worker.engines.openai.faults import Again, Hopeless, KeyRefused, Wait, refusal
from symposia_worker.engines.openai.gate import Gate, backoff
from symposia_worker.engines.openai.reading import MOST_BYTES, Answer, parsed, pieces, scored
from symposia_worker.engines.protocol import Delta, Done, Event, Failed, First, Generate
from symposia_worker.engines.vectors import float32_digits

log = logging.getLogger("symposia.engine")

#: bytes of an error's body that are read
MOST_ERROR_BYTES = 64 << 10
#: seconds a server is given, after the end of an answer, to say how many tokens it took
TAIL_S = 5.0


class Call:
    """A request in flight. ``tell`` is given its events, the last of which is ``done`` or ``failed``; ``safe`` takes secrets out of a text."""

    def __init__(self, request: Generate, ask: Ask, endpoint: Endpoint, tell: Callable[[Call, Event], None], *,
                 safe: Callable[[str], str] = str) -> None:
        self.request, self.ask, self._patience = request, ask, endpoint.patience
        self._tell, self._safe = tell, safe
        self._first_at: float | None = None
        #: what was shown of the answer; a repeated one must begin with it
        self._shown = ""
        #: tries that were lost
        self.repeats = 0
        self.task: asyncio.Task[None] | None = None

    async def run(self, client: httpx.AsyncClient, gate: Gate) -> None:
        """To the end, whatever comes."""
        try:
            event: Event = Done(id=self.request.id, completion=await self._answered(client, gate))
        except Hopeless as fault:
            event = Failed(id=self.request.id, cause=fault.cause, message=f"{_sentence(fault)}")
        except Exception as error:  # the seam to a server: what it makes us stumble over fails this turn and no other
            log.exception("request %s", self.request.id)
            event = Failed(id=self.request.id, cause="bug", message=f"{type(error).__name__}: {error}")
        self._tell(self, event)

    async def _answered(self, client: httpx.AsyncClient, gate: Gate) -> Completion:
        began, lost = time.monotonic(), 0
        while True:
            try:
                async with gate.passed(within_s=self._left(began)):
                    return await self._tried(client, gate)
            except Wait as wait:
                paused = gate.pause(wait.after_s)
                log.warning("the endpoint asks to wait; no request is sent for %.1f s (%s)", paused, self._safe(str(wait)))
                if self._left(began) <= 0:
                    raise Hopeless("throttled", f"{wait}, and so for {time.monotonic() - began:.0f} s") from None
            except KeyRefused as fault:
                gate.refuse(str(fault))
                raise Hopeless("device_lost", f"{fault}; the endpoint refuses the key. Correct it and start the pool again") from None
            except Again as fault:
                lost += 1
                if lost >= self._patience.tries or self._left(began) <= 0:
                    raise Hopeless(fault.cause, f"{fault}; it was tried {lost} times") from None
                delay = backoff(lost) if fault.after_s is None else min(fault.after_s, max(0.0, self._left(began)))
                log.warning("request %s is tried again in %.1f s: %s", self.request.id, delay, self._safe(str(fault)))
                await asyncio.sleep(delay)
            self.repeats += 1

    def _left(self, began: float) -> float:
        """Seconds this turn may still wait for a server that is away."""
        return self._patience.away_s - (time.monotonic() - began)

    async def _tried(self, client: httpx.AsyncClient, gate: Gate) -> Completion:
        patience = self._patience
        started = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout_at(started + patience.first_token_s) as limit, self._sent(client) as response:
                if response.status_code != 200:
                    raise refusal(response.status_code, response.headers, await _body(response, MOST_ERROR_BYTES))
                gate.passes()
                if self.ask.path == "/embeddings" or self.ask.scored_from is not None:
                    return self._whole(parsed(await _body(response, MOST_BYTES)))
                return await self._listened(response, limit, started + patience.answer_s)
        except TimeoutError:
            waited = asyncio.get_running_loop().time() - started
            raise Again("timeout", f"the server was silent for too long (given up after {waited:.1f} s)") from None
        except httpx.TransportError as error:
            cause: Cause = "timeout" if isinstance(error, httpx.TimeoutException) else "device_lost"
            raise Again(cause, f"the connection failed: {type(error).__name__} {error}".rstrip()) from None
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
            raise Again("device_lost", f"the server's answer cannot be read: {type(error).__name__} {error}") from None

    @asynccontextmanager
    async def _sent(self, client: httpx.AsyncClient) -> AsyncIterator[httpx.Response]:
        # not httpx's own stream(): it reads a finished answer's rest on closing, and ours may never end
        request = client.build_request("POST", self.ask.path.removeprefix("/"), json=self.ask.body)
        response = await client.send(request, stream=True)
        try:
            yield response
        finally:
            await response.aclose()

    async def _listened(self, response: httpx.Response, limit: asyncio.Timeout, until: float) -> Completion:
        sampling = self.request.sampling
        answer = Answer(sampling.max_tokens, sampling.stop)
        if "text/event-stream" in response.headers.get("content-type", "text/event-stream"):
            await self._followed(response, answer, limit, until)
        else:  # it does not stream although it was asked to
            self._heard(answer, answer.take(parsed(await _body(response, MOST_BYTES))))
        if not answer.whole:
            raise Again("device_lost", "the stream ended in the middle of the answer")
        timing = Timing(first_token_at=self._first_at, last_token_at=time.time())
        completion = answer.completion(timing, logprobs=sampling.logprobs is not None)
        if sampling.logprobs is not None and not completion.logprobs and completion.text:
            raise Hopeless("refused", "the server gave no log-probabilities, which were asked for")
        if sampling.logprobs is not None and completion.logprobs is not None:
            completion = completion.model_copy(update={"logprobs": tuple(t.model_copy(update={"top": t.top[: sampling.logprobs]})
                                                                         for t in completion.logprobs)})
        if sampling.form is not None:
            completion = checked(completion, sampling.form, self.ask)
        if self.ask.wrapped and self.request.stream:
            self._tell(self, Delta(id=self.request.id, text=completion.text))
        return completion

    async def _followed(self, response: httpx.Response, answer: Answer, limit: asyncio.Timeout, until: float) -> None:
        said, now = "", asyncio.get_running_loop().time
        async with aclosing(pieces(response.aiter_bytes())) as stream:
            async for piece in stream:
                if piece is None:
                    continue  # a sign of life is no token: the time the server has for one runs on
                text = answer.take(piece)
                said += text
                self._heard(answer, said)
                if answer.whole:
                    break
                if text:
                    limit.reschedule(min(until, now() + self._patience.token_s))
            limit.reschedule(now() + 2 * TAIL_S)
            if answer.whole and not answer.over:
                with suppress(TimeoutError, httpx.HTTPError, Again):  # the answer is there; only its usage would be missing
                    await _ended(stream, answer)

    def _heard(self, answer: Answer, said: str) -> None:
        """Tell of the first token, and show what is new."""
        if self._first_at is None and answer.started:
            self._first_at = time.time()
            self._tell(self, First(id=self.request.id, at=self._first_at))
        if not self.request.stream or self.ask.wrapped:
            return
        if not (said.startswith(self._shown) or self._shown.startswith(said)):
            raise Hopeless("device_lost", "the stream broke after a part of the answer was shown, and the repeated answer is another one")
        if len(said) > len(self._shown):
            self._tell(self, Delta(id=self.request.id, text=said[len(self._shown):]))
            self._shown = said

    def _whole(self, found: dict[str, Any]) -> Completion:
        now = time.time()
        timing = Timing(first_token_at=now, last_token_at=now)
        usage = _counted(found)
        if self.ask.path == "/embeddings":
            return Completion(text="", usage=usage, timing=timing, vectors=_vectors(found, len(self.request.messages)))
        text = self.request.messages[-1].content
        tokens = _scored(found, self.ask.scored_from or 0, (self.ask.scored_from or 0) + len(text))
        if not tokens:
            raise Hopeless("refused", "the server gave no log-probabilities of the text")
        top = self.request.sampling.logprobs
        kept = None if top is None else tuple(t.model_copy(update={"top": t.top[:top]}) for t in tokens)
        return Completion(text=text, usage=usage, timing=timing, logprob_mean=sum(t.logprob for t in tokens) / len(tokens), logprobs=kept)


async def _ended(stream: AsyncIterator[dict[str, Any] | None], answer: Answer) -> None:
    async with asyncio.timeout(TAIL_S):
        async for piece in stream:
            if piece is not None:
                answer.take(piece)
            if answer.over:
                return


async def _body(response: httpx.Response, most: int) -> bytes:
    body = bytearray()
    async for chunk in response.aiter_bytes():
        body += chunk
        if len(body) > most:
            raise Again("device_lost", f"the server sent more than {most} bytes")
    return bytes(body)


def _counted(found: dict[str, Any]) -> Usage:
    count = found.get("usage", {}).get("prompt_tokens") if isinstance(found.get("usage"), dict) else None
    return Usage(prompt_tokens=count if type(count) is int and 0 <= count < 2**31 else 0)


def _vectors(found: dict[str, Any], wanted: int) -> tuple[tuple[float, ...], ...]:
    """One vector of length one for each text, in their order. Raises Again."""
    rows = found.get("data")
    rows = [r for r in rows if isinstance(r, dict)] if isinstance(rows, list) else []
    by_place = {r.get("index", i): r.get("embedding") for i, r in enumerate(rows)}
    vectors = [by_place.get(i) for i in range(wanted)]
    if not all(isinstance(v, list) and v and all(isinstance(x, int | float) for x in v) for v in vectors):
        raise Again("device_lost", f"the server gave {len(rows)} vectors for {wanted} texts, or such as are none")
    return tuple(_unit(v) for v in vectors if v is not None)


def _unit(vector: list[float]) -> tuple[float, ...]:
    length = math.sqrt(sum(x * x for x in vector))
    if not length or not math.isfinite(length):
        raise Hopeless("bug", "the server gave a vector without a length")
    return float32_digits(x / length for x in vector)


def _scored(found: dict[str, Any], begin: int, end: int) -> list[Any]:
    """The tokens any of whose characters lie in ``begin..end`` of the prompt."""
    choices = found.get("choices")
    given = choices[0].get("logprobs") if isinstance(choices, list) and choices and isinstance(choices[0], dict) else None
    if not isinstance(given, dict) or not isinstance(given.get("text_offset"), list) or not isinstance(given.get("tokens"), list):
        return []
    offsets, tokens = given["text_offset"], given["tokens"]
    places = [i for i, (at, token) in enumerate(zip(offsets, tokens, strict=False))
              if isinstance(at, int) and at < end and at + len(str(token)) > begin]
    return scored({name: [given[name][i] for i in places if i < len(given[name])] for name in ("tokens", "token_logprobs", "top_logprobs")
                   if isinstance(given.get(name), list)})


def _sentence(fault: Exception) -> str:
    text = str(fault)
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")
