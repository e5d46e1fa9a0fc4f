"""What a pool serves, and where a submit finds it."""

from __future__ import annotations

from dataclasses import dataclass, field

from symposia_shared.broker import CHECKS


@dataclass(frozen=True, slots=True)
class Placement:
    """What a pool serves: checkpoint → its queue and the facts a submit needs."""

    models: dict[str, dict[str, object]] = field(default_factory=dict)

    @property
    def queues(self) -> tuple[str, ...]:
        """The queues the pool claims from, each once."""
        return tuple(dict.fromkeys(str(place["queue"]) for place in self.models.values()))

    @property
    def checkpoints(self) -> list[str]:
        """What of it takes memory."""
        return [m for m in self.models if not m.startswith(("test/", "check/"))]

    @property
    def shown(self) -> list[str]:
        """What a heartbeat tells of it: all but the checks, which every pool has."""
        return sorted(m for m in self.models if m != CHECKS)

    def having(self, model: str, place: dict[str, object]) -> Placement:
        """This and one checkpoint more."""
        return Placement({**self.models, model: place})

    def without(self, model: str) -> Placement:
        """This and one checkpoint less."""
        return Placement({m: place for m, place in self.models.items() if m != model})
