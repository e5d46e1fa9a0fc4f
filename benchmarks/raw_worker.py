"""The raw Celery worker's app; RAW_URL names its broker."""

import os

from benchmarks.queued import raw_app

app = raw_app(os.environ["RAW_URL"], backend=True)
