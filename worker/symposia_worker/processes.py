"""The two long-lived programs: a coordinator's worker and a pool's worker. Each is a Celery worker with our bootstep.

The bootstep runs before the worker consumes, and an error in it ends the program: a worker without its model takes no turn
(a signal's handler would swallow the error; facts: celery §3).
"""

from __future__ import annotations

import importlib
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from celery import Celery, bootsteps, signals

from symposia_shared.archive import Archive
from symposia_shared.broker import CHECK_QUEUE, CHECKS, COORDINATOR, TEST_QUEUE, Doorbell, celery_app, queue_for
from symposia_shared.errors import BrokerUnavailable, SymposiaError, Unavailable, UnknownModel
from symposia_shared.ledger import Ledger
from symposia_shared.scripted import CAPABILITIES as SCRIPTED_CAN
from symposia_shared.settings import Settings
from symposia_shared.store import Store
from symposia_shared.turns import Cause
from symposia_worker import remote
from symposia_worker.canvas import CeleryCanvas
from symposia_worker.coordinator import Coordinator
from symposia_worker.course import Course
from symposia_worker.engines.client import EngineProcess
from symposia_worker.engines.openai.endpoint import Endpoint
from symposia_worker.engines.protocol import EngineChoice, Mode
from symposia_worker.keeping import hold_leases
from symposia_worker.pool import Placement, Pool
from symposia_worker.spool import Spool
from symposia_worker.tasks import coordinator_tasks, pool_tasks

log = logging.getLogger(__name__)

#: a key that is not there, read to connect to S3
WARM = "warm"
#: seconds a pool that starts waits for a broker that is away
BROKER_PATIENCE_S = 60.0
#: what another pool may do better than an endpoint that failed
ENDPOINT_FAULTS: frozenset[Cause] = frozenset({"throttled", "timeout", "device_lost"})
#: seconds a stopping pool gives to what runs
GRACE_S = 8.0


class Program(Protocol):
    """What a worker carries besides its tasks."""

    def start(self) -> None: ...

    def ready(self) -> None: ...

    def leave(self) -> None: ...


@dataclass(frozen=True, slots=True)
class PoolPlan:
    """A pool as it is asked for."""

    name: str
    device: str = "cpu"
    models: tuple[str, ...] = ()
    test_models: bool = False
    #: turns held at once
    concurrency: int = 32
    #: cores of the engine process
    threads: int = field(default_factory=lambda: os.cpu_count() or 1)
    memory_bytes: int | None = None
    origin: str = ""
    engine: EngineChoice = "auto"
    mode: Mode = "exact"
    #: where the device is an endpoint; ``models`` are then its own
    endpoint: Endpoint | None = None
    #: the key to it
    key: str | None = field(default=None, repr=False)


def run_coordinator(settings: Settings, *, name: str) -> int:
    """Run a coordinator until it is told to stop. Returns the exit code."""
    app = celery_app(settings, role="worker")
    ledger, archive = _seams(settings)
    coordinator = Coordinator(name=name, ledger=ledger, course=Course(ledger, archive, CeleryCanvas(app), Doorbell(app)), watch=_watching(),
                              limits=settings.limits)
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
    running = _PoolProgram(app, settings, plan, ledger, archive)
    models = dict.fromkeys((*plan.models, *sorted(wanted(ledger, plan.name))))
    queues = [*(queue_for(m) for m in models), *([TEST_QUEUE] if plan.test_models else []), CHECK_QUEUE]
    return _run(app, running, name=plan.name, queues=queues, concurrency=plan.concurrency)


def on_endpoint(plan: PoolPlan, *, key: str | None, max_concurrency: int, **fields: object) -> PoolPlan:
    """The plan of a pool whose device is an endpoint: its models are those asked for, or all that the endpoint lists.

    Raises BadInput (no such model, the key is refused) and Unavailable.
    """
    from symposia_worker.engines.openai.listing import models_of

    endpoint = Endpoint.of_device(plan.device, max_concurrency=max_concurrency, **fields)
    renamed = models_of(endpoint, key, plan.models)
    endpoint = endpoint.model_copy(update={"renamed": {ours: theirs for ours, theirs in renamed.items() if ours != theirs}})
    return replace(plan, endpoint=endpoint, key=key, models=tuple(renamed), concurrency=max_concurrency, device=endpoint.device)


class _PoolProgram:
    """Fetches, loads, then serves."""

    def __init__(self, app: Celery, settings: Settings, plan: PoolPlan, ledger: Ledger, archive: Archive) -> None:
        self.plan, self.ledger = plan, ledger
        self.folder = settings.dir
        self.quarantine_s = settings.devices.quarantine_s
        self.spool = Spool((settings.spool.folder or settings.dir / "spool") / re.sub(r"[^\w.-]+", "-", plan.name), settings.spool.max_bytes)
        environ = plan.endpoint.environ(plan.key) if plan.endpoint else None
        self.engine = EngineProcess(plan.device, _memory(plan), threads=plan.threads, on_death=self._died, environ=environ)
        self.course = Course(ledger, archive, CeleryCanvas(app), Doorbell(app))
        self.archive, self.bell, self.app = archive, Doorbell(app), app
        self.pool: Pool | None = None

    def start(self) -> None:
        warm(self.app, self.archive)
        loaded = threading.Event()
        threading.Thread(target=hold_leases, args=(self.ledger, self.spool.restore(), loaded), name="hold leases", daemon=True).start()
        try:
            self._start()
        finally:
            loaded.set()

    def _start(self) -> None:
        self.engine.start()
        models: dict[str, dict[str, object]] = {model: self._load(model) for model in self.plan.models}
        for model in sorted(wanted(self.ledger, self.plan.name) - set(models)):
            try:
                models[model] = self._load(model)
            except Unavailable as error:
                log.warning("%s is not taken up yet: %s", model, error)
            except SymposiaError as error:
                log.error("%s is not taken up: %s", model, error)
                self.ledger.refuse(self.plan.name, model, str(error))
        if self.plan.test_models:
            models["test/*"] = {"queue": TEST_QUEUE, "capabilities": list(SCRIPTED_CAN)}
        models[CHECKS] = {"queue": CHECK_QUEUE}
        self.pool = Pool(
            name=self.plan.name, device=self.plan.device, slots=self.plan.concurrency, ledger=self.ledger, archive=self.archive, course=self.course,
            bell=self.bell, engine=self.engine, placement=Placement(models), origin=self.plan.origin, watch=_watching(),
            adopt=self._take_up, rests_for=ENDPOINT_FAULTS if self.plan.endpoint else frozenset(), spool=self.spool, quarantine_s=self.quarantine_s,
        )
        pool_tasks(self.app, self.pool)
        self.pool.start()

    def ready(self) -> None:
        if self.pool is not None:
            self.pool.ready()

    def leave(self) -> None:
        if self.pool is not None:
            self.pool.stop(GRACE_S)
        else:
            self.engine.stop()

    def _load(self, model: str) -> dict[str, object]:
        """Verified files on this disk, then resident on the device; raises what is wrong with either."""
        if self.plan.endpoint is not None:
            return self._load_remote(model)
        from symposia_worker.models.cache import ModelCache, cache_folder
        from symposia_worker.models.seats import seat_of
        from symposia_worker.models.store import ModelStore

        models = ModelStore(self.archive.store)
        manifest = models.manifest(model)
        if manifest is None:
            raise UnknownModel(f"{model!r} is not in the model store.", field="model", value=model, remedy=f"Put it there: symposia models pull {model}")
        seat = seat_of(models, manifest, device=self.plan.device, engine=self.plan.engine, mode=self.plan.mode)
        folder = ModelCache(cache_folder(self.folder) / "models").fetch(models, seat.stored)
        loaded = self.engine.load(model, str(folder), engine=seat.engine, mode=seat.mode)
        log.info("loaded %s on %s %s: %.0f MB in %.1f s", model, seat.engine, seat.mode, loaded.bytes / 1e6, loaded.seconds)
        return {"queue": queue_for(model), "context": loaded.context, "longest_token_bytes": manifest.facts.longest_token_bytes,
                "instruct": loaded.instruct, "capabilities": list(loaded.capabilities), "params_b": round(manifest.facts.parameters / 1e9, 4),
                "engine": seat.engine, "mode": seat.mode}

    def _load_remote(self, model: str) -> dict[str, object]:
        """Nothing is fetched: the endpoint has it."""
        loaded = self.engine.load(model, engine="openai")
        return {"queue": queue_for(model), "context": loaded.context, "instruct": loaded.instruct, "capabilities": list(loaded.capabilities),
                "params_b": round(loaded.parameters / 1e9, 4), "engine": "openai"}

    def _take_up(self, model: str) -> dict[str, object]:
        """Load a checkpoint at run time and let the worker read its queue, too."""
        place = self._load(model)
        self.app.control.add_consumer(str(place["queue"]), destination=[f"{self.plan.name}@{_host()}"])
        return place

    def _died(self, ids: list[str]) -> None:
        if self.pool is not None:
            self.pool.on_engine_death(ids)


def wanted(ledger: Ledger, name: str, *, patience_s: float = BROKER_PATIENCE_S) -> set[str]:
    """The checkpoints a pool was asked to take up. A broker that is away as it starts is waited for: to end and be started again takes longer."""
    until = time.monotonic() + patience_s
    while True:
        try:
            return ledger.wanted(name)
        except BrokerUnavailable as error:
            if time.monotonic() > until:
                raise
            log.warning("%s waits to start: %s", name, error)
            time.sleep(min(0.5, patience_s))


def warm(app: Celery, archive: Archive) -> None:
    """Import and connect now what the first job would else wait for; what is away now is tried again then."""
    importlib.import_module("symposia_shared.patterns")
    importlib.import_module("celery.canvas")
    _ = archive.store.client, app.backend
    threading.Thread(target=_connect, args=(app, archive), name="connect", daemon=True).start()


def _connect(app: Celery, archive: Archive) -> None:
    """Beside the start, which need not wait where S3 or Redis is away."""
    try:
        Doorbell(app).connect()
        backend: Any = app.backend
        backend.client.ping()
        archive.store.get(WARM)  # the first request connects, and builds what every later one reuses
    except Exception as error:
        log.info("not yet connected: %s", error)


def _seams(settings: Settings) -> tuple[Ledger, Archive]:
    return Ledger(settings.broker, settings.prefix), Archive(Store(settings.s3))


def _memory(plan: PoolPlan) -> int:
    if plan.memory_bytes is not None:
        return plan.memory_bytes
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * 3 // 4


def _watching() -> bool:
    """``SYMPOSIA_WATCH=off`` leaves sweeping and self-feeding out, to prove what the chord does alone. For tests."""
    return os.environ.get("SYMPOSIA_WATCH", "on") != "off"


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
