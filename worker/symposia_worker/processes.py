"""The two long-lived programs: a coordinator's worker and a pool's worker. Each is a Celery worker with our bootstep.

The bootstep runs before the worker consumes, and an error in it ends the program: a worker without its model takes no turn
(a signal's handler would swallow the error; facts: celery §3).
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

from celery import Celery, bootsteps, signals

from symposia_shared.archive import Archive
from symposia_shared.batches.files import Files
from symposia_shared.batches.records import Batches
from symposia_shared.broker import CHECK_QUEUE, COORDINATOR, TEST_QUEUE, Doorbell, celery_app, queue_for
from symposia_shared.ledger import Ledger
from symposia_shared.ledger.desired import Assigned
from symposia_shared.settings import Settings
from symposia_shared.store import Store
from symposia_worker import remote
from symposia_worker.batches.drive import Seams
from symposia_worker.batches.driver import Driver
from symposia_worker.canvas import CeleryCanvas
from symposia_worker.coordinator import Coordinator
from symposia_worker.course import Course
from symposia_worker.engines.openai.endpoint import Endpoint
from symposia_worker.joining import await_name
from symposia_worker.notices.teller import Teller
from symposia_worker.program import MOST_LISTS, PoolPlan, PoolProgram, bells_of, patiently, wanted, warm, watching
from symposia_worker.sweeping import Sweeper
from symposia_worker.tasks import coordinator_tasks

log = logging.getLogger(__name__)


class Program(Protocol):
    """What a worker carries besides its tasks."""

    def start(self) -> None: ...

    def ready(self) -> None: ...

    def leave(self) -> None: ...


def run_coordinator(settings: Settings, *, name: str) -> int:
    """Run a coordinator until it is told to stop. Returns the exit code."""
    app = celery_app(settings, role="worker")
    ledger, archive = _seams(settings)
    seams = Seams(ledger, archive, Doorbell(app), Batches(ledger, archive.store), Files(ledger, archive.store), settings.limits, settings.api,
                  settings.batches)
    beside = (Teller(ledger, archive, settings), Sweeper(ledger, archive, settings), Driver(seams, name=name))
    coordinator = Coordinator(name=name, ledger=ledger, course=Course(ledger, archive, CeleryCanvas(app), Doorbell(app)), watch=watching(),
                              limits=settings.limits, beside=beside)
    coordinator_tasks(app, coordinator)

    class Running:
        def start(self) -> None:
            warm(app, archive)
            coordinator.start()

        def ready(self) -> None:
            coordinator.ready()

        def leave(self) -> None:
            coordinator.stop()

    return _run(app, Running(), name=name, queues=[COORDINATOR], concurrency=8)


def run_pool(settings: Settings, plan: PoolPlan) -> int:
    """Run a pool until it is told to stop. Returns the exit code."""
    app = celery_app(settings, role="worker")
    ledger, archive = _seams(settings)
    patiently(lambda: await_name(ledger, plan.name, _host()), plan.name)
    running = PoolProgram(app, settings, plan, ledger, archive)
    models = dict.fromkeys((*(a.checkpoint for a in running.first), *sorted(wanted(ledger, plan.name))))
    # a worker reads tens of lists well, and hundreds badly: doorbells for many checkpoints go to a list of the pool's
    running.many = len(models) > MOST_LISTS
    own = [] if running.many else [queue_for(m) for m in models]
    queues = [*own, bells_of(plan.name), *([TEST_QUEUE] if plan.test_models else []), CHECK_QUEUE]
    return _run(app, running, name=plan.name, queues=queues, concurrency=plan.concurrency)


def on_endpoint(plan: PoolPlan, *, key: str | None, max_concurrency: int, **fields: object) -> PoolPlan:
    """The plan of a pool whose device is an endpoint: its models are those asked for, or all that the endpoint lists.

    Raises BadInput (no such model, the key is refused) and Unavailable.
    """
    from symposia_worker.engines.openai.listing import models_of

    endpoint = Endpoint.of_device(plan.device, max_concurrency=max_concurrency, **fields)
    renamed = models_of(endpoint, key, tuple(a.checkpoint for a in plan.holds))
    endpoint = endpoint.model_copy(update={"renamed": {ours: theirs for ours, theirs in renamed.items() if ours != theirs}})
    return replace(plan, endpoint=endpoint, key=key, holds=tuple(Assigned(checkpoint=m) for m in renamed), concurrency=max_concurrency, device=endpoint.device)


def _seams(settings: Settings) -> tuple[Ledger, Archive]:
    return Ledger(settings.broker, settings.prefix), Archive(Store(settings.s3))


def _run(app: Celery, running: Program, *, name: str, queues: Sequence[str], concurrency: int) -> int:
    failed: list[BaseException] = []

    class Step(bootsteps.StartStopStep):
        requires = ("celery.worker.components:Pool",)

        def start(self, worker: Any) -> None:
            try:
                running.start()
            except BaseException as error:
                failed.append(error)
                raise

        def stop(self, worker: Any) -> None:
            running.leave()

    def on_ready(**_: object) -> None:
        running.ready()
        log.info("%s is ready", name)

    def on_stopping(**_: object) -> None:
        # the worker waits for its threads before it stops this step, and they wait for their turns: let these end first
        threading.Thread(target=running.leave, name="leave", daemon=True).start()

    remote.restrict()
    app.steps["worker"].add(Step)
    signals.worker_ready.connect(on_ready, weak=False)
    signals.worker_shutting_down.connect(on_stopping, weak=False)
    logging.basicConfig(level=os.environ.get("SYMPOSIA_LOG", "INFO"), stream=sys.stderr, force=True,
                        format="%(asctime)s %(levelname).1s %(name)s %(message)s")
    for noisy in ("celery.worker.strategy", "celery.app.trace", "kombu", "botocore", "urllib3"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    worker = app.Worker(hostname=f"{name}@{_host()}", pool="threads", concurrency=concurrency, queues=",".join(dict.fromkeys(queues)),
                        task_events=True, without_gossip=True, without_mingle=True, without_heartbeat=False, loglevel="INFO", quiet=True)
    worker.start()
    if failed:
        raise failed[0]
    return int(worker.exitcode or 0)


def _host() -> str:
    import socket

    return socket.gethostname()
