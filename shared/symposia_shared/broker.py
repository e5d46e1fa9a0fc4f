"""Celery on Redis: our own app, under our own prefix, beside whatever else uses the database; and the doorbells.

A message carries (job, round, turn) and nothing else. Its loss or repetition is harmless: the ledger is the truth.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Literal

from symposia_shared.errors import BrokerUnavailable
from symposia_shared.jobs import SINGLE_KINDS
from symposia_shared.signing import HEADER, signature

if TYPE_CHECKING:
    from celery import Celery

    from symposia_shared.ledger import Seat
    from symposia_shared.settings import Settings

COORDINATOR = "coordinator"
#: the queue of all scripted ``test/*`` checkpoints
TEST_QUEUE = "turns.test"
#: checks that need no model, such as a sandboxed test run: every pool serves them
CHECKS, CHECK_QUEUE = "check/*", "turns.check"

TURN, ADVANCE, SETTLE, CLOSED = "symposia.turn", "symposia.advance", "symposia.settle", "symposia.closed"


def placed_as(model: str) -> str:
    """The name under which a checkpoint is placed: all scripted ones, and all checks, are placed as one."""
    return "test/*" if model.startswith("test/") else CHECKS if model.startswith("check/") else model


def queue_for(model: str) -> str:
    """The queue a checkpoint's turns wait in, unless its placement says otherwise."""
    if model.startswith("check/"):
        return CHECK_QUEUE
    return TEST_QUEUE if model.startswith("test/") else "turns." + re.sub(r"[^a-z0-9._-]+", "-", model.lower())


def celery_app(settings: Settings, *, role: Literal["producer", "worker", "monitor"]) -> Celery:
    """A Celery app of our own: never the current one, never the default one, JSON only.

    The producer's has no result backend, so that it neither subscribes nor stores (facts: celery §6); the worker's keeps
    chords in the same Redis. Every key of kombu's, ``unacked`` included, starts with our prefix. What producer and worker send
    is signed; the monitor has no key, so nothing it sent would be taken. Raises StackUnavailable where no key is known.
    """
    from kombu import Exchange, Queue

    url = settings.broker
    app = _own_app(url, backend=url if role == "worker" else "disabled", key=None if role == "monitor" else settings.signing_key)
    transport = {
        "global_keyprefix": settings.prefix, "visibility_timeout": 3600, "socket_keepalive": True, "socket_connect_timeout": 3,
        "socket_timeout": 30, "health_check_interval": 10, "queue_order_strategy": "round_robin",
    }
    exchange = Exchange("symposia", type="direct")
    app.conf.update(
        broker_transport_options=transport, result_backend_transport_options={"global_keyprefix": settings.prefix},
        task_serializer="json", result_serializer="json", accept_content=["json"], result_accept_content=["json"],
        task_default_queue=COORDINATOR, task_default_exchange="symposia", task_default_exchange_type="direct",
        task_default_routing_key=COORDINATOR, task_queues=[Queue(COORDINATOR, exchange, routing_key=COORDINATOR)],
        task_create_missing_queues=True, task_acks_late=True, task_reject_on_worker_lost=True, worker_prefetch_multiplier=1,
        task_ignore_result=True, task_store_errors_even_if_ignored=False, result_expires=86_400, result_backend_always_retry=True,
        broker_connection_retry_on_startup=True, broker_connection_max_retries=None, broker_pool_limit=10,
        worker_send_task_events=True, task_send_sent_event=True, task_track_started=True,
        worker_hijack_root_logger=False, worker_cancel_long_running_tasks_on_connection_loss=False, task_publish_retry=False,
        worker_proc_alive_timeout=60, worker_enable_remote_control=True,
    )
    if role == "worker":
        app.conf.update(broker_transport="symposia_worker.guard:Transport", worker_consumer="symposia_worker.guard:SafeConsumer")
    return app


def _own_app(broker: str, *, backend: str, key: bytes | None) -> Celery:
    """An app that an application's CELERY_BROKER_URL or CELERY_RESULT_BACKEND cannot lead elsewhere: Celery puts those
    variables before what an app is told. ``key``: signs what it sends, and what it receives must be signed with."""
    from celery import Celery
    from celery.app import amqp

    stock: Any = Celery  # what is overridden here no stub knows
    stock_amqp: Any = amqp.AMQP

    class Messages(stock_amqp):  # type: ignore[misc]
        """Messages without the headers that say nothing (a fifth of a doorbell's bytes, and a doorbell is half of a queued job's), signed."""

        def as_task_v2(self, *args: Any, **options: Any) -> Any:
            message = super().as_task_v2(*args, **options)
            headers = {k: v for k, v in message.headers.items() if k != "origin" and v not in (None, {}, [None, None])}
            return message._replace(headers=headers)

        def _create_task_sender(self) -> Any:
            send = super()._create_task_sender()

            def send_signed(producer: Any, name: str, message: Any, **options: Any) -> Any:
                if key is not None:
                    message.headers[HEADER] = signature(key, message.headers, message.body)
                return send(producer, name, message, **options)

            return send_signed

    class Own(stock):  # type: ignore[misc]
        message_key = key

        def _get_backend(self) -> Any:
            backend = super()._get_backend()
            # nobody here waits for a Celery result; stock would subscribe to a channel for each task sent, for ever (celery #4824)
            backend.on_task_call = lambda *_, **__: None
            backend.add_pending_result = lambda result, *_, **__: result
            return backend


        def connection_for_read(self, url: str | None = None, **options: Any) -> Any:
            return super().connection_for_read(url or broker, **options)

        def connection_for_write(self, url: str | None = None, **options: Any) -> Any:
            return super().connection_for_write(url or broker, **options)

    app: Celery = Own("symposia", set_as_current=False, broker=broker, amqp=Messages)
    app.backend_cls = backend
    return app


class Doorbell:
    """Rings a pool or the coordinator. A ring that cannot be sent is no error: the ledger's own watch finds the work."""

    def __init__(self, app: Celery) -> None:
        self.app = app

    def connect(self) -> None:
        """Connect now, so that the first ring, within a job's time, need not. Nobody there is no error."""
        try:
            with self.app.producer_or_acquire() as producer:
                producer.connection.ensure_connection(max_retries=1)
        except Exception as error:
            _connection(error)

    def turn(self, seat: Seat, queue: str, *, kind: str) -> bool:
        """Ring the pools of ``queue`` for one turn. Its Celery id is the job's own where the job is one prompt."""
        task_id = seat.job_id if kind in SINGLE_KINDS else None
        return self._ring(TURN, (seat.job_id, seat.round, seat.turn), queue, root=seat.job_id, task_id=task_id, shadow=kind,
                          shown=f"{seat.job_id} r{seat.round} t{seat.turn}")

    def advance(self, job_id: str, *, kind: str, first: bool = False) -> bool:
        """Ring the coordinator for a job whose next round or result is due."""
        return self._ring(ADVANCE, (job_id,), COORDINATOR, root=job_id, task_id=job_id if first else None, shadow=f"{kind}.advance", shown=job_id)

    def settle(self, job_id: str, number: int, *, kind: str) -> bool:
        """Ring the coordinator to ask whether the round's outcome can still change."""
        return self._ring(SETTLE, (job_id, number), COORDINATOR, root=job_id, task_id=None, shadow=f"{kind}.settle", shown=f"{job_id} r{number}")

    def _ring(self, task: str, args: tuple[Any, ...], queue: str, *, root: str, task_id: str | None, shadow: str, shown: str) -> bool:
        try:
            self.app.send_task(task, args=args, task_id=task_id, root_id=root, queue=queue, ignore_result=True, retry=False,
                               shadow=shadow, argsrepr=f"({shown})", kwargsrepr="{}")
        except Exception as error:
            return not _connection(error)
        return True


def _connection(error: Exception) -> bool:
    """Whether ``error`` is the broker's absence (True); anything else is a bug and is raised on."""
    from kombu.exceptions import OperationalError
    from redis.exceptions import RedisError

    if isinstance(error, (OperationalError, RedisError, OSError, BrokerUnavailable)):
        return True
    raise error
