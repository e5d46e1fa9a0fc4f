"""What the torch engine asks of a kind of checkpoint that is no decoder: admit, step, drop, count."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence, Sized

from symposia_worker.engines.protocol import Event, Generate


class Lane(ABC):
    """The requests of one resident checkpoint, advanced one forward pass at a time beside every other checkpoint's."""

    #: forward passes so far, the self-test left out
    forward_passes: int = 0
    #: bytes one token of a request takes while it is in flight; 0 where nothing is kept between steps
    cache_bytes_per_token: int = 0

    @abstractmethod
    def admit(self, request: Generate) -> None:
        """Check and queue. Raises BadInput (PromptTooLong among it) before anything is computed."""

    @abstractmethod
    def step(self) -> Sequence[Event]:
        """One forward pass, and what came of it. What fails its requests is their ``failed``; a lost device is raised."""

    @abstractmethod
    def drop(self, request_id: str) -> bool:
        """Take a request out; False where it is not here."""

    @abstractmethod
    def drop_all(self) -> list[str]:
        """Take every request out, and give its memory back."""

    @abstractmethod
    def self_test(self) -> None:
        """Raises Damaged where a batched forward is not what a single one is."""

    @property
    @abstractmethod
    def running(self) -> int:
        """Requests being computed."""

    @property
    @abstractmethod
    def waiting(self) -> Sized:
        """Requests that wait for room."""

    @property
    def busy(self) -> bool:
        """Whether anything is in flight."""
        return bool(self.running or len(self.waiting))

    @property
    def cache_bytes(self) -> int:
        """What it holds between two steps beside the weights."""
        return 0
