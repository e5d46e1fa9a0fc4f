"""The two guards on stock kombu and Celery, and nothing more: the ledger makes everything else of the transport harmless.

1. A worker must not exit when the broker restarts while it holds an unacknowledged message (kombu 5.7: closing the
   collected connection restores messages through a connection that is gone). The message stays in ``unacked``.
2. A message that is malformed, in another form than JSON, or not signed with the deployment's key is put
   aside in ``PREFIX quarantine`` and never comes back to the next worker.

And Celery's reconnect back-off (2, 4 ... 30 s) is held to a second, or a flapping broker leaves workers deaf.
"""

from __future__ import annotations

import json
import time
from functools import partial
from typing import Any

from celery.utils.log import get_logger
from celery.worker.consumer import Consumer
from kombu.transport import redis, virtual

from symposia_shared.signing import authentic

log = get_logger(__name__)
#: what is overridden here is private to kombu and Celery, and no stub knows it
stock: Any = redis
StockConsumer: Any = Consumer
QUARANTINED = 1_000


def _collected(channel: Any) -> bool:
    """Whether the channel's connection is gone already."""
    connection = channel.connection
    return connection is None or getattr(connection, "client", None) is None


def put_aside(channel: Any, error: Exception, body: Any) -> None:
    """Keep what is no message among the dead letters (``symposia dead list``), cut to 500 characters; never raises."""
    log.error("a malformed message is put into quarantine: %r", error)
    try:
        with channel.conn_or_acquire() as client:
            client.lpush("quarantine", json.dumps({"at": time.time(), "error": repr(error)[:500], "body": repr(body)[:500]}))
            client.ltrim("quarantine", 0, QUARANTINED - 1)
    except Exception as trouble:
        log.error("it could not even be put aside: %r", trouble)


class Unsigned(Exception):
    """A message that nobody with the deployment's key has sent. No OSError: the consumer would take that for the broker's absence."""


class QoS(stock.QoS):
    """Acknowledgements that survive the loss of their channel."""

    def restore_unacked_once(self, stderr: Any = None) -> Any:
        if _collected(self.channel):
            self._on_collect.cancel()
            self._delivered.restored = True
            return None
        return super().restore_unacked_once(stderr)

    def restore_unacked(self, client: Any = None) -> Any:
        if _collected(self.channel):
            self._delivered.clear()
            return None
        return super().restore_unacked(client)

    def ack(self, delivery_tag: Any) -> Any:
        return self._settle(super().ack, delivery_tag)

    def reject(self, delivery_tag: Any, requeue: bool = False) -> Any:
        return self._settle(lambda tag: super(QoS, self).reject(tag, requeue), delivery_tag)

    def _settle(self, act: Any, tag: Any) -> Any:
        if _collected(self.channel):
            return virtual.QoS.ack(self, tag)
        return act(tag)


class Channel(stock.Channel):
    """A channel whose reader drops what is not a message."""

    QoS = QoS

    def _brpop_read(self, **options: Any) -> Any:
        try:
            return super()._brpop_read(**options)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            # a JSON error has the text it is about; what is JSON but no message comes to Transport._deliver
            put_aside(self, error, getattr(error, "doc", ""))
            raise stock.Empty() from None


class Transport(stock.Transport):
    """Stock Redis transport with our channel."""

    Channel = Channel

    def _deliver(self, message: Any, queue: Any) -> Any:
        try:
            return super()._deliver(message, queue)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            channel = next(iter(self.channels), None)
            if channel is None:
                raise
            put_aside(channel, error, message)
            return None


class SafeConsumer(StockConsumer):
    """A consumer that no single message can end."""

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Any:
        inner = super().create_task_handler(*args, **kwargs)

        def on_message(message: Any) -> Any:
            try:
                self._require_signature(message)
                return inner(message)
            except (*self.connection_errors, MemoryError):
                raise
            except Exception as error:
                self._quarantine(message, error)
                return None

        return on_message

    def _require_signature(self, message: Any) -> None:
        """Raises for a message that nobody with the deployment's key has sent; one in another form than JSON raises when it is decoded."""
        if not authentic(self.app.message_key, message.headers, message.payload):
            raise Unsigned(f"the message for {str(message.headers.get('task'))[:100]!r} is not signed with this deployment's key")

    def _quarantine(self, message: Any, error: Exception) -> None:
        try:
            put_aside(message.channel, error, message.body)
        finally:
            message.reject_log_error(log, self.connection_errors)

    def ensure_connected(self, conn: Any) -> Any:
        conn.ensure_connection = partial(conn.ensure_connection, interval_start=0.2, interval_step=0.2, interval_max=1.0)
        return super().ensure_connected(conn)
