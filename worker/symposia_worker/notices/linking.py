"""A task of the caller's own Celery app, sent to its own broker, once.

On Redis, whosever it is, the message and the mark that it was sent are one script: however often we are killed in between and try again,
the task is enqueued once. Other brokers know no such thing: there a kill between sending and writing that down sends the task a second
time, under the same task id.
"""

from __future__ import annotations

from typing import Any

from celery import Celery
from kombu import Exchange, Queue
from kombu.transport import redis
from kombu.utils.json import dumps

from symposia_shared.notices.wishes import LinkedTask

stock: Any = redis

#: seconds for which it is remembered that a task was sent: longer than it is tried
REMEMBERED_S = 14 * 86_400

_ONCE = """
if redis.call('SET', KEYS[1] .. '.linked.' .. ARGV[1], 1, 'NX', 'EX', ARGV[3]) then redis.call('LPUSH', KEYS[1], ARGV[2]) return 1 end
return 0
"""


class OnceChannel(stock.Channel):
    """Puts a message of one id into a queue once."""

    def _put(self, queue: str, message: Any, **_: Any) -> None:
        key = self._q_for_pri(queue, self._get_message_priority(message, reverse=False))
        with self.conn_or_acquire() as client:
            client.register_script(_ONCE)(keys=[key], args=[message["headers"]["id"], dumps(message), REMEMBERED_S])


class OnceTransport(stock.Transport):
    """Redis, by such channels."""

    Channel = OnceChannel


def send(linked: LinkedTask, result_key: str, *, task_id: str, own_broker: str) -> None:
    """Enqueue a caller's task with the result's key. Raises what kombu raises where the broker cannot be reached."""
    broker = linked.broker or own_broker
    app = Celery("symposia.linked", set_as_current=False, broker=broker)
    app.conf.update(broker_transport_options=dict(linked.transport_options), task_serializer="json", result_backend=None, broker_connection_timeout=5,
                    broker_pool_limit=0, task_publish_retry=False, **_once(broker))
    queue = Queue(linked.queue, Exchange(linked.exchange, type=linked.exchange_type) if linked.exchange else None, routing_key=linked.routing_key)
    options: dict[str, Any] = {"queue": queue, **linked.options}
    with app.connection_for_write(broker) as connection:
        connection.ensure_connection(max_retries=1, timeout=5)
        app.send_task(linked.task, args=[*([] if linked.immutable else [result_key]), *linked.args], kwargs=dict(linked.kwargs), task_id=task_id,
                      connection=connection, ignore_result=True, retry=False, **options)


def _once(broker: str) -> dict[str, str]:
    plain = broker.partition("://")[0] in ("redis", "rediss", "redis+socket")
    return {"broker_transport": "symposia_worker.notices.linking:OnceTransport"} if plain else {}
