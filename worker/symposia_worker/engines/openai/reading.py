"""A server's answer as it comes: its lines, its pieces, and the completion they make. Whatever a server sends, this stays bounded."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from symposia_shared.turns import Completion, FinishReason, Timing, TokenLogprob, Usage
from symposia_worker.engines.openai.faults import Again, Hopeless, in_stream
from symposia_worker.families.family import DEFAULT

#: bytes of one line of a stream, and of an answer that comes in one piece (embeddings are long)
MOST_LINE_BYTES, MOST_BYTES = 4 << 20, 256 << 20
#: pieces a server may send per token asked for, and some: it does not end by itself
PIECES_PER_TOKEN, SPARE_PIECES = 4, 256
#: characters of text per token asked for, and some
CHARACTERS_PER_TOKEN, SPARE_CHARACTERS = 512, 65_536

_FINISHES: dict[str, FinishReason] = {"stop": "stop", "eos": "stop", "eos_token": "stop", "stop_sequence": "stop", "length": "length"}


async def pieces(chunks: AsyncIterator[bytes]) -> AsyncGenerator[dict[str, Any] | None]:
    """The objects of a stream of server-sent events; None for what carries none (comments). Ends after ``[DONE]``.

    Raises Again for what is not such a stream, and where it ends without ``[DONE]`` nothing is raised: the answer knows whether it is whole.
    """
    rest = b""
    async for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        if len(rest) > MOST_LINE_BYTES:
            raise Again("device_lost", f"the server sent {MOST_LINE_BYTES >> 20} MB without an end of line")
        for line in lines:
            if line.strip() == b"data: [DONE]" or line.strip() == b"data:[DONE]":
                yield {"done": True}
                return
            yield _piece(line.strip())
    if rest.strip() and _piece(rest.strip()) is not None:
        yield _piece(rest.strip())


def _piece(line: bytes) -> dict[str, Any] | None:
    if not line or line.startswith((b":", b"event:", b"id:", b"retry:")):
        return None
    if line.startswith((b"data:", b"error:")):
        return parsed(line.partition(b":")[2])
    raise Again("device_lost", f"the server sent what is no event stream: {shown(line)}")


def parsed(body: bytes) -> dict[str, Any]:
    """The JSON object in a body. Raises Again."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        raise Again("device_lost", f"the server sent what is no JSON: {shown(body)}") from None
    if not isinstance(found, dict):
        raise Again("device_lost", f"the server sent JSON that is no object: {shown(body)}")
    return found


def shown(body: bytes) -> str:
    """Bytes as a person may see them, cut."""
    return repr(body[:80].decode(errors="replace")) + ("…" if len(body) > 80 else "")


class Answer:
    """What a server has said so far of one request."""

    def __init__(self, max_tokens: int, stop: tuple[str, ...] = ()) -> None:
        self.max_tokens, self._stop = max_tokens, stop
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._tokens: list[TokenLogprob] = []
        self._finish: FinishReason | None = None
        self._done = False
        self._usage: Usage | None = None
        self._pieces = self._characters = 0

    @property
    def whole(self) -> bool:
        """Whether its end was seen."""
        return self._done or self._finish is not None

    @property
    def over(self) -> bool:
        """Whether nothing more can come."""
        return self._done

    @property
    def started(self) -> bool:
        """Whether a token has come."""
        return bool(self._text or self._reasoning or self._tokens or self._finish)

    def take(self, piece: dict[str, Any]) -> str:
        """Take one object of the stream, or a whole answer; returns the text that it adds. Raises Again and Hopeless."""
        if piece.get("done") is True and len(piece) == 1:
            self._done = True
            return ""
        if piece.get("error"):
            raise in_stream(piece["error"])
        if isinstance(piece.get("usage"), dict):
            self._usage = _usage(piece["usage"])
        choices = piece.get("choices")
        if not isinstance(choices, list) or not all(isinstance(c, dict) for c in choices):
            if "usage" in piece or "choices" in piece:
                return ""
            raise Again("device_lost", f"the server sent an object without choices: {shown(json.dumps(piece).encode())}")
        return "".join(self._take_choice(c) for c in choices[:1])

    def _take_choice(self, choice: dict[str, Any]) -> str:
        said = choice.get("delta") if isinstance(choice.get("delta"), dict) else choice.get("message")
        said = said if isinstance(said, dict) else choice
        reasoning = _string(said.get("reasoning_content")) or _string(said.get("reasoning"))
        text = _string(said.get("content")) if said is not choice else _string(choice.get("text"))
        self._tokens += _logprobs(choice.get("logprobs"))
        opening, closing = DEFAULT.reasoning_marks
        told = ""  # with the marks, by which whoever shows it as it comes tells a reasoning from the answer
        if reasoning:
            told += reasoning if self._reasoning else opening + reasoning
            self._reasoning.append(reasoning)
        if text:
            told += text if self._text or not self._reasoning else closing + text
            self._text.append(text)
        if isinstance(choice.get("finish_reason"), str):
            self._finish = self._finished(choice["finish_reason"])
        self._count(len(reasoning) + len(text))
        return told

    def _finished(self, reason: str) -> FinishReason:
        if reason == "content_filter":
            raise Hopeless("refused", "the server's content filter has stopped the answer")
        if reason in ("error", "abort", "cancelled"):
            raise Again("device_lost", f"the server ended the answer by {reason!r}")
        return _FINISHES.get(reason, "stop")

    def _count(self, characters: int) -> None:
        self._pieces += characters > 0
        self._characters += characters
        if self._pieces > self.max_tokens * PIECES_PER_TOKEN + SPARE_PIECES or (
                self._characters > self.max_tokens * CHARACTERS_PER_TOKEN + SPARE_CHARACTERS):
            raise Hopeless("bug", f"the server does not end: {self._pieces} pieces, {self._characters} characters came where at most "
                                  f"{self.max_tokens} tokens were asked for")

    def completion(self, timing: Timing, *, logprobs: bool) -> Completion:
        """The whole answer. Usage is 0 where the server does not tell it; ``logprobs``: token by token, not their mean alone, which
        is None where a server left tokens out."""
        text, reasoning = "".join(self._text), "".join(self._reasoning) or None
        if reasoning is None:
            reasoning, text = _split(text)
        else:
            text = text.lstrip()
        cut = min((at for s in self._stop if (at := text.find(s)) >= 0), default=None)
        finish: FinishReason = "stop" if cut is not None else self._finish or "stop"
        known = [t.logprob for t in self._tokens]
        if self._usage and len(known) < self._usage.completion_tokens - 1:  # the token that ends an answer may lack; llama.cpp leaves out more (OPERATIONS)
            known = []
        return Completion(text=text if cut is None else text[:cut], finish_reason=finish, reasoning=reasoning, timing=timing,
                          usage=self._usage or Usage(completion_tokens=len(self._tokens)),
                          logprob_mean=sum(known) / len(known) if known else None, logprobs=tuple(self._tokens) if logprobs else None)


def _split(text: str) -> tuple[str | None, str]:
    """(reasoning, answer) of a text in which a server left the marks of a thinking model."""
    opening, closing = DEFAULT.reasoning_marks
    if not text.lstrip().startswith(opening):
        return None, text
    reasoning, _, answer = text.partition(closing)
    return reasoning.lstrip().removeprefix(opening).strip(), answer.lstrip()


def _usage(given: dict[str, Any]) -> Usage | None:
    """None for what cannot be counts."""
    counts = [given.get(name, 0) or 0 for name in ("prompt_tokens", "completion_tokens")]
    if not all(type(n) is int and 0 <= n < 2**31 for n in counts):
        return None
    return Usage(prompt_tokens=counts[0], completion_tokens=counts[1])


def _logprobs(given: Any) -> list[TokenLogprob]:
    """Both forms: of chats (``content``), and of /completions (parallel lists)."""
    if not isinstance(given, dict):
        return []
    if isinstance(given.get("content"), list):
        return [t for one in given["content"] if (t := _token(one)) is not None]
    return scored(given)


def scored(given: dict[str, Any]) -> list[TokenLogprob]:
    """The tokens of parallel lists; one without a number (the first of a text has none) is left out."""
    tokens, numbers, tops = (given.get(name) or [] for name in ("tokens", "token_logprobs", "top_logprobs"))
    found = []
    for i, token in enumerate(tokens):
        number = numbers[i] if i < len(numbers) else None
        if isinstance(token, str) and isinstance(number, int | float) and math.isfinite(number):
            top = tops[i] if i < len(tops) and isinstance(tops[i], dict) else {}
            found.append(TokenLogprob(token=token, logprob=number, top=_sorted([*top.items()])))
    return found


def _token(one: Any) -> TokenLogprob | None:
    if not isinstance(one, dict) or not isinstance(one.get("logprob"), int | float) or not math.isfinite(one["logprob"]):
        return None
    top = [(t.get("token"), t.get("logprob")) for t in one.get("top_logprobs") or [] if isinstance(t, dict)]
    return TokenLogprob(token=_string(one.get("token")), logprob=one["logprob"], top=_sorted(top))


def _sorted(top: list[tuple[Any, Any]]) -> tuple[tuple[str, float], ...]:
    sound = [(_string(t), float(p)) for t, p in top if isinstance(t, str) and isinstance(p, int | float) and math.isfinite(p)]
    return tuple(sorted(sound, key=lambda pair: -pair[1]))


def _string(value: Any) -> str:
    """A server's text; a lone surrogate in it (half an emoji, escaped in JSON) becomes U+FFFD, since no UTF-8 can carry it."""
    return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace") if isinstance(value, str) else ""
