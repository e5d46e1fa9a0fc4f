"""A tiny prompt of our own, by which a device is asked whether it answers at all."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from symposia_shared.errors import SymposiaError
from symposia_shared.prompts import Sampling, user
from symposia_shared.turns import Abstention, Cause, Completion, Turn

#: abstentions that tell of the device, not of the prompt
DEVICE_FAULTS: frozenset[Cause] = frozenset({"device_lost", "out_of_memory", "timeout", "bug"})
#: seconds between looks
LOOK_S = 0.05


class Asked(Protocol):
    """What of an engine process is asked."""

    def generate(self, turn_id: str, turn: Turn, on_first: Callable[[float], None], on_done: Callable[[Completion | Abstention], None]) -> None: ...


def probe(engine: Asked, models: Mapping[str, Mapping[str, object]], died: threading.Event, *, within_s: float) -> str:
    """Why the device cannot be trusted, '' where it answered or has nothing loaded to answer with. ``died``: set when the process is gone."""
    turn = _turn(models)
    if turn is None:
        return ""
    replies: list[Completion | Abstention] = []
    try:
        engine.generate(f"probe|{uuid.uuid4().hex[:12]}", turn, lambda _: None, replies.append)
    except SymposiaError as error:
        return f"it could not be asked: {error}"
    until = time.monotonic() + within_s
    while not replies and not died.is_set() and time.monotonic() < until:
        time.sleep(LOOK_S)
    if not replies:
        return f"its engine process died of four tokens of {turn.model}" if died.is_set() else f"{turn.model} did not answer within {within_s:.0f} s"
    reply = replies[0]
    failed = isinstance(reply, Abstention) and reply.cause in DEVICE_FAULTS
    return f"asked alone, {turn.model} failed ({reply.cause}): {reply.message}" if failed and isinstance(reply, Abstention) else ""


def _turn(models: Mapping[str, Mapping[str, Any]]) -> Turn | None:
    for model, place in models.items():
        can: Sequence[str] = place.get("capabilities") or ("generate",)
        if model.startswith("check/"):
            continue
        named = "test/echo" if model == "test/*" else model
        if "generate" in can or model == "test/*":
            return Turn(member="probe", model=named, messages=user("1 2 3"), sampling=Sampling(max_tokens=4, temperature=0.0))
        if "embed" in can:
            return Turn(member="probe", model=named, messages=user("1 2 3"), want="embedding")
    return None
