"""Which of Celery's remote control commands a worker obeys.

They are broadcasts that nobody signs: whoever may publish to the broker could stop a worker, change its queues or read its
configuration. So only those are left that Flower needs to look.
"""

from __future__ import annotations

from typing import Any

from celery.worker import control

ALLOWED = frozenset({
    "ping", "hello", "clock", "heartbeat", "enable_events",
    "stats", "registered", "active", "reserved", "scheduled", "revoked", "active_queues", "query_task",
})


def restrict() -> None:
    """From now on this process knows the allowed commands only; others are answered by a line in its log."""
    panel: Any = control.Panel
    for name in set(panel.data) - ALLOWED:
        del panel.data[name]
        panel.meta.pop(name, None)
