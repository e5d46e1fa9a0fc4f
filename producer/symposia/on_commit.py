"""A job submitted when the transaction that asked for it is committed, and not at all where it is rolled back. For Django."""

from __future__ import annotations

import logging
import uuid
from typing import TYPE_CHECKING, Any

from symposia_shared.errors import StackUnavailable
from symposia_shared.jobs import Job

if TYPE_CHECKING:
    from symposia.client import Client
    from symposia.handle import Handle

log = logging.getLogger(__name__)


def submit_on_commit(client: Client, job: Job, *, using: str | None = None, job_id: str | None = None, **more: Any) -> Handle:
    """The handle of a job that is submitted once the current transaction of the database ``using`` is committed; at once where there is none.

    ``more``: what ``Client.submit`` takes. Its id is known now, so that it can be written in the same transaction. Raises StackUnavailable
    without Django. What the submit itself raises comes out of the commit, as with any ``transaction.on_commit``: the rows are then committed.
    """
    try:
        from django.db import transaction
    except ModuleNotFoundError:
        raise StackUnavailable("submit_on_commit waits for a transaction of Django's, which is not installed here. Use submit.") from None
    chosen = job_id or uuid.uuid4().hex
    transaction.on_commit(lambda: client.submit(job, job_id=chosen, **more), using=using)
    return client.handle(chosen)
