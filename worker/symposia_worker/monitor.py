"""The Celery app that Flower is started with: ``celery -A symposia_worker.monitor flower``.

Flower takes the key prefix from the app's transport options, so that its broker page counts our queues under their prefix.
"""

from __future__ import annotations

from symposia_shared.broker import celery_app
from symposia_shared.settings import load

app = celery_app(load(), role="monitor")
