"""What the routes share: the client, keys and limits; jobs submitted for a tenant, waited for, cancelled."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastapi import Request

from symposia.api.ears import Ears
from symposia.api.faults import HttpFault, fault_in, refused
from symposia.api.tenancy import tell, tokens_of
from symposia.client import Client
from symposia.handle import Handle
from symposia.once import Submitted, life_ms, submit_behind
from symposia.telling import wish_of, wished
from symposia_shared.errors import Busy, NotYet, SymposiaError, Unavailable
from symposia_shared.jobs import Job
from symposia_shared.ledger.allowances import found_once
from symposia_shared.ledger.gate import Gate, Once
from symposia_shared.ledger.tenants import Keys
from symposia_shared.ledger.usage import TENANT_TAG
from symposia_shared.results import Result
from symposia_shared.settings import ApiSettings

if TYPE_CHECKING:
    from symposia_shared.ledger.tenants import ApiKey

log = logging.getLogger(__name__)

#: seconds beyond a job's deadline that its end may take to be written
GRACE_S = 30.0
#: seconds between looks whether the client is still there
GONE_LOOK_S = 1.0


def tenant_tag(tenant: str) -> str:
    """The tag that says whose a job is. As its first tag it names the party among which a queue is shared fairly."""
    return TENANT_TAG + tenant


@dataclass(slots=True)
class Desk:
    """One process of the API."""

    client: Client
    keys: Keys
    ears: Ears
    limits: ApiSettings

    def new_ids(self, many: int) -> list[str]:
        """Ids for jobs to come."""
        return [uuid.uuid4().hex for _ in range(many)]

    async def ask(self, key: ApiKey, jobs: Sequence[Job], job_ids: Sequence[str], *, stream: bool = False, once: Once | None = None,
                  request: Request | None = None, background: bool = False, webhook: str | None = None) -> Submitted:
        """Record jobs for a tenant, within its limits and behind an idempotency key: all or none. ``background``: nobody waits for them.
        ``webhook`` is told of each one's end, ``request``'s answer of what is left of the tenant's minute.

        Raises Limited, KeyReused, and what ``Client.submit`` raises.
        """
        more = {"tags": (tenant_tag(key.tenant),), "priority": "normal" if background else "interactive",
                "deadline_s": self.limits.background_timeout_s if background else self.limits.timeout_s}
        submitted = await asyncio.to_thread(self._ask, key.tenant, [job.model_copy(update=more) for job in jobs], job_ids, stream, once, webhook)
        if request is not None:
            tell(request, submitted)
        return submitted

    def _ask(self, tenant: str, jobs: Sequence[Job], job_ids: Sequence[str], stream: bool, once: Once | None, webhook: str | None) -> Submitted:
        before = found_once(self.client.ledger, once) if once is not None else None
        if before is not None:
            return Submitted([Handle(self.client, job_id) for job_id in before.job_ids], before=before)
        with ExitStack() as stack:
            for job_id in job_ids if webhook is not None else ():
                wish = wish_of(webhook=webhook, broker=self.client.settings.broker, allowed=self.client.settings.webhooks.networks)
                stack.enter_context(wished(self.client.outbox, job_id, wish))
            submitted = self._recorded(tenant, jobs, job_ids, stream, once)
        if submitted.before is not None and webhook is not None:  # recorded by another process meanwhile: its wish stands
            for job_id in job_ids:
                self.client.outbox.withdraw(job_id)
        return submitted

    def _recorded(self, tenant: str, jobs: Sequence[Job], job_ids: Sequence[str], stream: bool, once: Once | None) -> Submitted:
        records = [self.client.record_of(job_id, job, stream=stream) for job_id, job in zip(job_ids, jobs, strict=True)]
        gate = Gate(tenant=tenant, tokens=tuple(tokens_of(job) for job in jobs), once=once, life_ms=life_ms(self.client, records))
        try:
            return submit_behind(self.client, records, gate)
        except Unavailable as error:
            if once is None and not isinstance(error, Busy):  # they may have been recorded, and nobody will ask for them
                with suppress(SymposiaError):
                    self.client.cancel_many(job_ids)
            raise

    async def result(self, handle: Handle) -> Result:
        """The result of a job, whatever its end was. Raises NotYet well after its deadline, when it is cancelled."""
        try:
            return await handle.wait_async(self.limits.timeout_s + GRACE_S)
        except NotYet:
            await self.cancel([handle.job_id])
            raise

    async def answers(self, handles: Sequence[Handle], request: Request, *, keep: bool = False) -> list[Result]:
        """The results of all jobs of a request. Raises HttpFault for the first that failed; the others, and all where nobody waits any more, are cancelled.

        ``keep``: they go on, for they will be asked for again.
        """
        waits = [asyncio.create_task(self._answer(handle)) for handle in handles]
        ids = [handle.job_id for handle in handles]
        try:
            todo = set(waits)
            while todo:
                done, todo = await asyncio.wait(todo, timeout=GONE_LOOK_S, return_when=asyncio.FIRST_EXCEPTION)
                for task in done:
                    task.result()
                if todo and not done and await request.is_disconnected():
                    raise refused(499, "the client has gone.", code="cancelled")
        except BaseException:
            for task in waits:
                task.cancel()
            if not keep:
                self.cancel_later(ids)
            raise
        return [task.result() for task in waits]

    async def _answer(self, handle: Handle) -> Result:
        result = await self.result(handle)
        fault: HttpFault | None = fault_in(result)
        if fault is not None:
            raise fault
        return result

    async def cancel(self, job_ids: Sequence[str]) -> None:
        """Ask for jobs' ends; those that have ended are passed over."""
        with suppress(SymposiaError):
            await asyncio.to_thread(self.client.cancel_many, list(job_ids))

    def cancel_later(self, job_ids: Sequence[str]) -> None:
        """The same from where nothing can be awaited any more."""
        asyncio.get_running_loop().run_in_executor(None, self._cancel, list(job_ids))

    def erase_later(self, job_id: str) -> None:
        """Erase a job that has ended, beside."""
        asyncio.get_running_loop().run_in_executor(None, self._erase, job_id)

    def _erase(self, job_id: str) -> None:
        try:
            self.client.delete(job_id)
        except SymposiaError as error:
            log.warning("%s is not erased before its time: %s", job_id, error)

    def _cancel(self, job_ids: list[str]) -> None:
        try:
            self.client.cancel_many(job_ids)
        except SymposiaError as error:
            log.warning("%d jobs whose client has gone could not be cancelled: %s", len(job_ids), error)
