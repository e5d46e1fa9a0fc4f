"""The program of a pool: it fetches, loads, then serves."""

from __future__ import annotations

import importlib
import logging
import os
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from celery import Celery

from symposia_shared.archive import Archive
from symposia_shared.broker import CHECK_QUEUE, CHECKS, TEST_QUEUE, Doorbell, queue_for
from symposia_shared.errors import BadInput, BrokerUnavailable, SymposiaError, Unavailable
from symposia_shared.ledger import Ledger
from symposia_shared.ledger.desired import Assigned, Desired
from symposia_shared.residency import SwapAware
from symposia_shared.scripted import CAPABILITIES as SCRIPTED_CAN
from symposia_shared.settings import Settings
from symposia_shared.turns import Cause
from symposia_worker.canvas import CeleryCanvas
from symposia_worker.consuming import Consuming
from symposia_worker.course import Course
from symposia_worker.engines.client import EngineProcess
from symposia_worker.engines.openai.endpoint import Endpoint
from symposia_worker.engines.protocol import Dtype, EngineChoice, Loaded, Mode
from symposia_worker.engines.split import is_split
from symposia_worker.folders import FoldersInUse
from symposia_worker.keeping import hold_leases
from symposia_worker.models.cache import cache_folder
from symposia_worker.models.prefetching import Watch
from symposia_worker.placement import Placement
from symposia_worker.pool import Pool
from symposia_worker.reconciling import Grasp, Reconciler
from symposia_worker.spool import Spool
from symposia_worker.swapping import Brought, Swapping, Under
from symposia_worker.tasks import pool_tasks

log = logging.getLogger(__name__)

T = TypeVar("T")

if TYPE_CHECKING:
    from symposia_worker.models.seats import StoredCheckpoint
    from symposia_worker.models.store import ModelStore

#: a key that is not there, read to connect to S3
WARM = "warm"
#: seconds a pool that starts waits for a broker that is away
BROKER_PATIENCE_S = 60.0
#: what another pool may do better than an endpoint that failed
ENDPOINT_FAULTS: frozenset[Cause] = frozenset({"throttled", "timeout", "device_lost"})
#: seconds a stopping pool gives to what runs
GRACE_S = 8.0
#: Celery lists of checkpoints that one worker reads
MOST_LISTS = 16
#: of a device's memory, for the caches of its checkpoints to grow in
CACHE_SHARE = 0.1


def bells_of(pool: str) -> str:
    """The list of a pool's own doorbells."""
    return f"bells.{pool}"


@dataclass(frozen=True, slots=True)
class PoolPlan:
    """A pool as it is asked for."""

    name: str
    device: str = "cpu"
    #: what it begins with, each in the precision it was planned in
    holds: tuple[Assigned, ...] = ()
    test_models: bool = False
    #: turns held at once
    concurrency: int = 32
    #: cores of the engine process
    threads: int = field(default_factory=lambda: os.cpu_count() or 1)
    memory_bytes: int | None = None
    origin: str = ""
    engine: EngineChoice = "auto"
    mode: Mode = "exact"
    #: where the device is an endpoint; ``holds`` are then its own
    endpoint: Endpoint | None = None
    #: the key to it
    key: str | None = field(default=None, repr=False)


class PoolProgram:
    """Fetches, loads, then serves."""

    def __init__(self, app: Celery, settings: Settings, plan: PoolPlan, ledger: Ledger, archive: Archive) -> None:
        self.plan, self.ledger = plan, ledger
        self.reuse_s, self.residency = settings.limits.reuse_s, settings.residency
        self.quarantine_s = settings.devices.quarantine_s
        self.spool = Spool((settings.spool.folder or settings.dir / "spool") / re.sub(r"[^\w.-]+", "-", plan.name), settings.spool.max_bytes)
        environ = plan.endpoint.environ(plan.key) if plan.endpoint else None
        self.engine = EngineProcess(plan.device, _memory(plan), threads=plan.threads, on_death=self._died, environ=environ)
        self.course = Course(ledger, archive, CeleryCanvas(app), Doorbell(app))
        self.archive, self.bell, self.app = archive, Doorbell(app), app
        self.pool: Pool | None = None
        self.swapping: Swapping | None = None
        #: as what each checkpoint is served
        self.assigned: dict[str, Assigned] = {}
        #: whether the worker reads none of its checkpoints' own lists
        self.many = False
        self.folders = FoldersInUse(cache_folder(settings.dir))
        self.prefetch = None if plan.endpoint else Watch(cache_folder(settings.dir), settings)
        self.consuming = Consuming()
        #: what the desired placement says of it; None: nothing, and it serves what it was asked for
        self.named = patiently(lambda: Desired(ledger).of(plan.name)[1], plan.name)
        self.first = self.named if self.named is not None else plan.holds

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
        self.swapping = self._swapping()
        models = self._opening()
        later = {a.checkpoint: a for a in (*map(_plainly, sorted(wanted(self.ledger, self.plan.name))), *(self.named or ()))}
        for model, assigned in later.items():
            if model in models:
                continue
            try:
                models[model] = self._load(assigned)
            except Unavailable as error:
                log.warning("%s is not taken up yet: %s", model, error)
            except SymposiaError as error:
                log.error("%s is not taken up: %s", model, error)
                self.ledger.refuse(self.plan.name, model, str(error))
        if self.plan.test_models:
            models["test/*"] = {"queue": TEST_QUEUE, "capabilities": list(SCRIPTED_CAN), "revision": "scripted"}
        models[CHECKS] = {"queue": CHECK_QUEUE}
        self.pool = Pool(
            name=self.plan.name, device=self.plan.device, slots=self.plan.concurrency, ledger=self.ledger, archive=self.archive, course=self.course,
            bell=self.bell, engine=self.engine, placement=Placement(models), origin=self.plan.origin, watch=watching(),
            adopt=lambda model: self._take_up(_plainly(model)), rests_for=ENDPOINT_FAULTS if self.plan.endpoint else frozenset(),
            reuse_s=self.reuse_s, memory_bytes=0 if self.plan.endpoint else _memory(self.plan),
            swapping=self.swapping, spool=self.spool, quarantine_s=self.quarantine_s,
        )
        grasp = Grasp(take=self._take_up, close=self.consuming.close, unload=self._give_up)
        self.pool.reconciler = Reconciler(self.pool, grasp, begun_with=self.plan.holds, memory_bytes=_memory(self.plan))
        pool_tasks(self.app, self.pool)
        self.pool.start()

    def ready(self) -> None:
        if self.pool is not None:
            self.pool.ready()
        if self.prefetch is not None:
            self.prefetch.start()

    def leave(self) -> None:
        if self.prefetch is not None:
            self.prefetch.stop()
        if self.pool is not None:
            self.pool.stop(GRACE_S)
        else:
            self.engine.stop()

    def _swapping(self) -> Swapping | None:
        """The device's residency. An endpoint has its own."""
        if self.plan.endpoint is not None:
            return None
        given = self.residency
        policy = SwapAware(longest_wait_s=given.longest_wait_s, patience_s=given.patience_s, idle_ttl_s=given.idle_ttl_s)
        return Swapping(policy=policy, budget_bytes=int(_memory(self.plan) * (1 - CACHE_SHARE)), bring=self._bring, drop=self._unload,
                        pinned=frozenset(given.pins), bells=bells_of(self.plan.name))

    def _opening(self) -> dict[str, dict[str, object]]:
        """Where the plan's checkpoints are served: all are loaded now if they fit together, else the pinned ones, and the others on demand."""
        first, swapping = self.first if self.named is None else (), self.swapping
        if swapping is None:
            return {a.checkpoint: self._load_remote(a.checkpoint) for a in first}
        expected = {a.checkpoint: self._stored(a) for a in first}
        for model, stored in expected.items():
            swapping.register(model, bytes=stored.bytes, engine=stored.seat.engine, under=_under(stored))
        fit = swapping.all_fit
        return {a.checkpoint: self._load(a) if fit or a.checkpoint in self.residency.pins else expected[a.checkpoint].place(bell=swapping.bells)
                for a in first}

    def _load(self, assigned: Assigned) -> dict[str, object]:
        """Make a checkpoint resident, or register it where the device has no room now. Raises what is wrong with it."""
        model = assigned.checkpoint
        if self.swapping is None:
            return self._load_remote(model)
        stored = self._stored(assigned)
        self.swapping.register(model, bytes=stored.bytes, engine=stored.seat.engine, under=_under(stored))
        try:
            brought = self._bring(model, stored)
        except BadInput as error:
            if error.field != "memory" or stored.bytes > self.swapping.budget_bytes:
                self.swapping.forget(model)
                raise
            log.info("%s is loaded when it is asked: %s", model, error)
            return stored.place(bell=self.swapping.bells)
        except SymposiaError:
            self.swapping.forget(model)
            raise
        self.swapping.brought(model, brought)
        return {**brought.place, "bell": self.swapping.bells} if self.many else brought.place

    def _stored(self, assigned: Assigned) -> StoredCheckpoint:
        """What the model store has of a checkpoint. Raises UnknownModel, and BadInput where it cannot be served as it is asked for."""
        from symposia_worker.models.seats import stored_checkpoint
        from symposia_worker.models.store import ModelStore

        self.assigned[assigned.checkpoint] = assigned
        precision = assigned.precision
        dtype: Dtype = "bfloat16" if precision == "bfloat16" else "float16" if precision == "float16" else "float32"
        return stored_checkpoint(ModelStore(self.archive.store), assigned.checkpoint, device=self.plan.device, dtype=dtype, **self._by(precision))

    def _bring(self, model: str, stored: StoredCheckpoint | None = None) -> Brought:
        """Verified files on this disk, then resident on the device; raises what is wrong with either. ``stored``: as it was read just now."""
        from symposia_worker.models.store import ModelStore

        began, models = time.monotonic(), ModelStore(self.archive.store)
        stored = stored or self._stored(self.assigned.get(model, _plainly(model)))
        of, seat = stored.manifest.facts.adapter_of, stored.seat
        before = self.folders.put(model, {seat.stored, of.id} if of else {seat.stored})
        try:
            loaded = self._loaded(models, model, stored)
        except BaseException:
            self.folders.put(model, before)
            raise
        seconds = time.monotonic() - began
        log.info("loaded %s on %s %s: %.0f MB in %.1f s", model, seat.engine, seat.mode, loaded.held_bytes / 1e6, seconds)
        return Brought(stored.place(loaded), bytes=loaded.held_bytes, seconds=seconds, under=_under(stored))

    def _loaded(self, models: ModelStore, model: str, stored: StoredCheckpoint) -> Loaded:
        from symposia_worker.models.adapters import base_of

        cache, seat = self.folders.cache, stored.seat
        folder = cache.fetch(models, stored.files)
        base = base_of(models, stored.manifest, cache)
        return self.engine.load(model, str(folder), dtype=stored.dtype, engine=seat.engine, mode=seat.mode, base=base)

    def _unload(self, model: str) -> None:
        """Return its memory, and let its files go when their room is needed."""
        self.engine.unload(model)
        self.folders.put(model, ())

    def _give_up(self, model: str) -> None:
        """It is served no more."""
        if self.swapping is not None:
            self.swapping.forget(model)
        self._unload(model)

    def _by(self, precision: str | None) -> dict[str, Any]:
        """Engine and mode for a precision: 8-bit weights are openvino's, half floats and split devices torch's; None: as the pool was started."""
        on_gpu = self.plan.device.startswith("cuda")
        if precision in ("bfloat16", "float16"):
            return {"engine": "torch", "mode": "fast" if on_gpu else "exact"}
        if is_split(self.plan.device):
            return {"engine": "torch", "mode": self.plan.mode if on_gpu and precision is None else "exact"}
        if precision == "int8":
            return {"engine": "openvino", "mode": "fast"}
        return {"engine": self.plan.engine, "mode": "exact" if precision else self.plan.mode}

    def _load_remote(self, model: str) -> dict[str, object]:
        """Nothing is fetched: the endpoint has it."""
        loaded = self.engine.load(model, engine="openai")
        return {"queue": queue_for(model), "context": loaded.context, "instruct": loaded.instruct, "capabilities": list(loaded.capabilities),
                "params_b": round(loaded.parameters / 1e9, 4), "engine": "openai", **({"bell": bells_of(self.plan.name)} if self.many else {})}

    def _take_up(self, assigned: Assigned) -> dict[str, object]:
        """Load a checkpoint at run time and let the worker read its queue, too."""
        place = self._load(assigned)
        if "bell" not in place:
            self.consuming.open(str(place["queue"]))
        return place

    def _died(self, ids: list[str]) -> None:
        if self.pool is not None:
            self.pool.on_engine_death(ids)


def wanted(ledger: Ledger, name: str, *, patience_s: float = BROKER_PATIENCE_S) -> set[str]:
    """The checkpoints a pool was asked to take up. A broker that is away as it starts is waited for: to end and be started again takes longer."""
    return patiently(lambda: ledger.wanted(name), name, patience_s=patience_s)


def patiently(ask: Callable[[], T], name: str, *, patience_s: float = BROKER_PATIENCE_S) -> T:
    until = time.monotonic() + patience_s
    while True:
        try:
            return ask()
        except BrokerUnavailable as error:
            if time.monotonic() > until:
                raise
            log.warning("%s waits to start: %s", name, error)
            time.sleep(min(0.5, patience_s))


def _under(stored: StoredCheckpoint) -> Under | None:
    of = stored.manifest.facts.adapter_of
    return Under(of.id, stored.base_bytes) if of is not None else None


def _plainly(model: str) -> Assigned:
    return Assigned(checkpoint=model)


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


def _memory(plan: PoolPlan) -> int:
    if plan.memory_bytes is not None:
        return plan.memory_bytes
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * 3 // 4


def watching() -> bool:
    """``SYMPOSIA_WATCH=off`` leaves sweeping and self-feeding out, to prove what the chord does alone. For tests."""
    return os.environ.get("SYMPOSIA_WATCH", "on") != "off"
