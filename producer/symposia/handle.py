"""A producer's hold on a job."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Generator, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import TYPE_CHECKING

from symposia_shared.errors import BrokerUnavailable, NotYet, StoreUnavailable, UnknownJob
from symposia_shared.results import Result, RoundRecord
from symposia_shared.standing import Status, status

if TYPE_CHECKING:
    from symposia.client import Client

#: seconds between looks for a newly closed round
ROUND_LOOK_S = 0.2
#: seconds a wait bears a broker that cannot be reached when it begins; later outages last as long as the wait
BROKER_PATIENCE_S = 10.0


class Handle:
    """A submitted job. It can be made again from the job's id by ``Client.handle``, in any process."""

    def __init__(self, client: Client, job_id: str) -> None:
        self.client, self.job_id = client, job_id

    def __repr__(self) -> str:
        return f"Handle({self.job_id!r})"

    def status(self) -> Status:
        """How the job stands and what it waits for. Raises UnknownJob."""
        return status(self.client.ledger, self.client.archive, self.job_id)

    def wait(self, timeout: float | None = None) -> Result:
        """The committed result, whatever the job's end was. Raises NotYet after ``timeout`` seconds; the job goes on."""
        watched = self.client.watcher.watch(self.job_id)
        until = None if timeout is None else time.monotonic() + timeout
        try:
            if self._in_flight():
                watched.result(timeout)
        except FutureTimeout:
            raise NotYet(f"job {self.job_id} has not ended within {timeout:g} s; it goes on. Ask again, or `symposia status {self.job_id}`.") from None
        finally:
            watched.cancel()
        return self._fetch(until)

    def result(self, timeout: float | None = None) -> Result:
        """The result of a job that is done. Raises NotYet, or the typed error the job ended with (JobFailed, JobCancelled)."""
        return self.wait(timeout).raise_for_state()

    def rounds(self) -> Iterator[RoundRecord]:
        """The job's rounds, each as soon as it is closed, until the job ends."""
        seen = 0
        watched = self.client.watcher.watch(self.job_id)
        try:
            while self._in_flight() and not watched.done():
                record = self.client.archive.round(self.job_id, seen)
                if record is not None:
                    yield record
                    seen += 1
                    continue
                try:
                    watched.result(ROUND_LOOK_S)
                except FutureTimeout:
                    pass
        finally:
            watched.cancel()
        yield from self._fetch(None).rounds[seen:]

    def cancel(self) -> bool:
        """Ask for the job's end; what ran is stopped at its next token. False where it had ended already."""
        return self.client.cancel(self.job_id)

    def __await__(self) -> Generator[object, None, Result]:
        return self._await().__await__()

    async def _await(self) -> Result:
        return (await self.wait_async()).raise_for_state()

    async def wait_async(self, timeout: float | None = None) -> Result:
        """``wait`` without blocking the event loop."""
        watched: Future[None] = self.client.watcher.watch(self.job_id)
        try:
            if await asyncio.to_thread(self._in_flight):
                await asyncio.wait_for(asyncio.wrap_future(watched), timeout)
        except TimeoutError:
            raise NotYet(f"job {self.job_id} has not ended within {timeout:g} s; it goes on. Ask again.") from None
        finally:
            watched.cancel()
        return await asyncio.to_thread(self._fetch, None)

    def _in_flight(self) -> bool:
        """Whether the ledger has the job; a broker that is being restarted is waited for a little."""
        until = time.monotonic() + BROKER_PATIENCE_S
        while True:
            try:
                return self.client.ledger.job(self.job_id) is not None
            except BrokerUnavailable:
                if time.monotonic() > until:
                    raise
                time.sleep(0.3)

    def _fetch(self, until: float | None) -> Result:
        """The result of a job the ledger has forgotten; S3 may be away for a while."""
        while True:
            try:
                result = self.client.archive.result(self.job_id)
                break
            except StoreUnavailable:
                if until is not None and time.monotonic() > until:
                    raise
                time.sleep(0.5)
        if result is None:
            raise UnknownJob(f"no job {self.job_id!r} is in the ledger or in S3.", field="job_id", value=self.job_id,
                             remedy="List them with `symposia jobs`; another stack's folder is named with --dir.")
        return result


class AsyncHandle:
    """``Handle`` whose methods are awaited. ``await handle`` is its result."""

    def __init__(self, handle: Handle) -> None:
        self._handle = handle
        self.job_id = handle.job_id

    def __repr__(self) -> str:
        return f"AsyncHandle({self.job_id!r})"

    async def status(self) -> Status:
        """How the job stands."""
        return await asyncio.to_thread(self._handle.status)

    async def wait(self, timeout: float | None = None) -> Result:
        """The committed result, whatever the job's end was. Raises NotYet."""
        return await self._handle.wait_async(timeout)

    async def result(self, timeout: float | None = None) -> Result:
        """The result of a job that is done. Raises NotYet or the error the job ended with."""
        return (await self.wait(timeout)).raise_for_state()

    async def rounds(self) -> AsyncIterator[RoundRecord]:
        """The job's rounds, each as soon as it is closed."""
        rounds = self._handle.rounds()
        while (record := await asyncio.to_thread(next, rounds, None)) is not None:
            yield record

    async def cancel(self) -> bool:
        """Ask for the job's end."""
        return await asyncio.to_thread(self._handle.cancel)

    def __await__(self) -> Generator[object, None, Result]:
        return self.result().__await__()
