"""What one stack consists of: its ports, credentials and settings, the services that are its own, and its workers."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit, urlunsplit

from symposia_shared import settings as configured
from symposia_shared.settings import Settings
from symposia_worker.engines.openai.endpoint import KEY, is_endpoint
from symposia_worker.engines.protocol import EngineChoice, Mode
from symposia_worker.stack import credentials as kept
from symposia_worker.stack import ports as numbers
from symposia_worker.stack import services
from symposia_worker.stack.commands import PoolOrder, WorkerCommands
from symposia_worker.stack.credentials import Credentials
from symposia_worker.stack.devices import DeviceShare
from symposia_worker.stack.folder import Folder
from symposia_worker.stack.part import Part, environment
from symposia_worker.stack.ports import Ports

#: what a pool gives its own turns (8 s) before it hands them back, and some
WORKER_GRACE_S = 12.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What a stack is to run besides its services. ``models``: called once the store answers, for what the pools shall serve."""

    devices: tuple[DeviceShare, ...]
    models: Callable[[Settings], tuple[str, ...]] = lambda _: ()
    test_models: bool = False
    concurrency: int | None = None
    engine: EngineChoice = "auto"
    mode: Mode = "exact"
    flower: bool = True
    api: bool = False
    #: seconds the workers are given to be ready; a first start downloads and loads its models within them
    start_timeout_s: float = 300.0


@dataclass(frozen=True, slots=True)
class Blueprint:
    """The stack of one run, drawn before any of it starts."""

    folder: Folder
    plan: Plan
    settings: Settings
    ports: Ports
    credentials: Credentials

    @property
    def services(self) -> tuple[Part, ...]:
        """The services that are the stack's own, each with its configuration written."""
        makers = {"broker": services.broker, "store": services.store}
        return tuple(makers[name](self.folder, self.credentials, self.ports) for name in self.credentials.embedded)

    @property
    def addresses(self) -> dict[str, str | None]:
        """Where broker, store, API and Flower are, without secrets. The store is None where it is AWS itself."""
        endpoint = self.settings.s3.endpoint_url
        flower = f"http://{numbers.LOOPBACK}:{self.ports.flower}" if self.plan.flower else None
        api = f"http://{numbers.LOOPBACK}:{self.ports.api}/v1" if self.plan.api else None
        return {"broker": without_secrets(self.settings.broker), "store": endpoint and without_secrets(endpoint), "api": api, "flower": flower}

    @property
    def origin(self) -> str:
        """The stack's id."""
        return self.folder.stack_id()

    def orders(self, models: Sequence[str]) -> tuple[PoolOrder, ...]:
        """One pool for each device; one that has nothing to serve yet waits for `symposia models serve`.

        An endpoint serves what it has; the scripted checkpoints too where no other device is there to.
        """
        plan, own = self.plan, [share for share in self.plan.devices if not is_endpoint(share.device)]
        return tuple(PoolOrder(self._name(share.pool), share, origin=self.origin, models=() if is_endpoint(share.device) else models,
                               test_models=plan.test_models and share in (own or plan.devices), concurrency=plan.concurrency,
                               engine=plan.engine, mode=plan.mode) for share in plan.devices)

    def workers(self, orders: Sequence[PoolOrder], commands: WorkerCommands, *, ready: Callable[[int], bool]) -> tuple[Part, ...]:
        """Coordinator, pools, API and Flower."""
        environ = environment(self.settings.environ())
        logs, name = self.folder.logs, self._name("coordinator")
        parts = [Part(role="coordinator", name=name, command=commands.coordinator(name), folder=self.folder.path,
                      log=logs / "coordinator.log", environ=environ, ready=ready, grace_s=WORKER_GRACE_S)]
        parts += [Part(role="pool", name=order.name, device=order.share.device, command=commands.pool(order), folder=self.folder.path,
                       log=logs / f"{order.share.pool}.log", environ=environ | _key_for(order.share.device), ready=ready,
                       grace_s=WORKER_GRACE_S) for order in orders]
        if self.plan.api:
            parts.append(services.api(self.folder, self.ports, environ=environ))
        if self.plan.flower:
            unsigned = {name: value for name, value in environ.items() if name != "SYMPOSIA_MESSAGE_KEY"}  # Flower sends no task
            parts.append(services.flower(self.folder, self.credentials, self.ports, environ=unsigned))
        return tuple(parts)

    def _name(self, name: str) -> str:
        """``name``; where Redis is not the stack's own, made unlike those of other stacks on it."""
        return name if "broker" in self.credentials.embedded else f"{name}.{self.origin[:6]}"


def _key_for(device: str) -> dict[str, str]:
    """An endpoint's key, from the environment of ``symposia up``: no other part of the stack is given it."""
    return {KEY: os.environ[KEY]} if is_endpoint(device) and KEY in os.environ else {}


def draw(folder: Folder, plan: Plan) -> Blueprint:
    """The blueprint of this run: ports chosen, credentials stored. What the environment names is external.

    Raises BadInput and StackUnavailable for settings, ports and credentials that cannot be used.
    """
    kept.read(folder)
    configured.load(folder.path)  # for its errors: each names the variable and the remedy
    given = Settings(dir=folder.path)
    needed = [] if kept.external_store(given) else [*numbers.PAIRED]
    needed += ["broker"] * (not given.external) + ["flower"] * plan.flower + ["api"] * plan.api
    ports = numbers.choose(folder, needed=frozenset(needed))
    credentials = kept.write(folder, given, ports)
    return Blueprint(folder, plan, configured.load(folder.path), ports, credentials)


def without_secrets(url: str) -> str:
    """A URL without its user and password."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
