"""A batch through the HTTP API, as any client would, patient while the API is being restarted."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import httpx

from benchmarks.chaos.stack import Stack
from symposia.cli.info import running

#: seconds for which the API may be away
PATIENCE_S = 120.0


class Api:
    """The stack's API."""

    def __init__(self, stack: Stack) -> None:
        key = json.loads((stack.folder / "credentials.json").read_text())["api_key"]
        self.http = httpx.Client(base_url=str(running(stack.folder)["api"]), headers={"Authorization": f"Bearer {key}"}, timeout=300)

    def upload(self, path: Path) -> dict[str, Any]:
        """A file, streamed from the disk."""
        def send() -> httpx.Response:
            with path.open("rb") as file:
                return self.http.post("files", data={"purpose": "batch"}, files={"file": (path.name, file)})

        return self._asked(send)

    def create(self, file_id: str, **more: Any) -> dict[str, Any]:
        """A batch of it."""
        body = {"input_file_id": file_id, "endpoint": "/v1/chat/completions", "completion_window": "24h", **more}
        return self._asked(lambda: self.http.post("batches", json=body))

    def get(self, batch_id: str) -> dict[str, Any]:
        """How it stands."""
        return self._asked(lambda: self.http.get(f"batches/{batch_id}"))

    def rows(self, file_id: str | None) -> list[dict[str, Any]]:
        """The lines of a file."""
        return [] if file_id is None else [json.loads(row) for row in self._answer(lambda: self.http.get(f"files/{file_id}/content")).text.splitlines()]

    def ended(self, batch_id: str, *, within_s: float, told: Callable[[dict[str, Any]], None] = lambda _: None) -> dict[str, Any]:
        """The batch once it has ended."""
        until = time.monotonic() + within_s
        while (found := self.get(batch_id))["status"] not in ("completed", "failed", "expired", "cancelled"):
            assert time.monotonic() < until, f"it has not ended: {found}"
            told(found)
            time.sleep(0.5)
        return found

    def _asked(self, ask: Callable[[], httpx.Response]) -> dict[str, Any]:
        found: dict[str, Any] = self._answer(ask).json()
        return found

    def _answer(self, ask: Callable[[], httpx.Response]) -> httpx.Response:
        until = time.monotonic() + PATIENCE_S
        while True:
            try:
                answer = ask()
                if answer.status_code < 500 and answer.status_code != 429:
                    return answer.raise_for_status()
            except httpx.TransportError:
                pass
            assert time.monotonic() < until, "the API does not answer"
            time.sleep(0.3)


def written(path: Path, lines: Iterable[bytes]) -> Path:
    """The lines in a file."""
    with path.open("wb") as file:
        file.writelines(lines)
    return path
