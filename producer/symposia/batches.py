"""Batches and their files, from a producer's side."""

from __future__ import annotations

import hashlib
import re
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from symposia_shared.batches import windows
from symposia_shared.batches.files import Files
from symposia_shared.batches.parts import Parts, Which
from symposia_shared.batches.records import Batches
from symposia_shared.batches.uploads import lines_of
from symposia_shared.batches.values import ENDED, ENDPOINTS, Batch, BatchFile, Order
from symposia_shared.errors import BadInput, UnknownJob
from symposia_shared.ledger.control import Control
from symposia_shared.ledger.gate import Once
from symposia_shared.ledger.tenants import OWNER
from symposia_shared.teams import is_team, read_team

if TYPE_CHECKING:
    from symposia.client import Client

#: pairs of a batch's metadata, characters of a key and of a value
MOST_PAIRS, LONGEST_KEY, LONGEST_VALUE = 16, 64, 512
#: characters of a checkpoint's or a saved team's name
LONGEST_MODEL = 2_048
#: of lines in flight that are cancelled, so many are rung for at once; the driver sees to the others
RUNG = 300
#: seconds files may be kept by request, as OpenAI has it
SHORTEST_LIFE_S, LONGEST_LIFE_S = 3_600, 30 * 86_400

_ID = re.compile(r"batch_[0-9a-f]{8,40}")


class TenantBatches:
    """The batches and files of one tenant. Methods raise BadInput (UnknownJob for an id that is not there), Busy, BrokerUnavailable, StoreUnavailable."""

    def __init__(self, client: Client, tenant: str = OWNER) -> None:
        self.client, self.tenant = client, tenant

    @cached_property
    def files(self) -> Files:
        """The files of the deployment."""
        return Files(self.client.ledger, self.client.archive.store)

    @cached_property
    def records(self) -> Batches:
        """The batches of the deployment."""
        return Batches(self.client.ledger, self.client.archive.store)

    # -- files

    def put_file(self, pieces: Iterable[bytes], filename: str, *, expires_s: int | None = None) -> BatchFile:
        """Keep an input file, read as it goes by."""
        with self.files.writing(self.tenant, filename, most=self.client.settings.batches.max_bytes) as file:
            for piece in pieces:
                file.write(piece)
            return file.finish(expires_s=expires_s)

    def file(self, file_id: str) -> BatchFile:
        """A file."""
        return self.files.get(self.tenant, file_id)

    def content(self, file_id: str) -> Iterator[bytes]:
        """Its bytes."""
        return self.files.content(self.file(file_id))

    def delete_file(self, file_id: str) -> None:
        """Delete a file. Raises BadInput while a batch reads it."""
        self.file(file_id)
        for batch in self.records.active_of(self.tenant):
            if batch.order.input_file_id == file_id:
                raise BadInput(f"the file {file_id!r} is the input of {batch.id}, which has not ended.", field="file_id", value=file_id,
                               remedy="Cancel the batch first, or wait for its end.")
        self.files.delete(self.tenant, file_id)

    # -- batches

    def create(self, input_file_id: str, *, endpoint: str = ENDPOINTS[0], completion_window: object = "24h", metadata: Mapping[str, str] | None = None,
               auto_model: str | None = None, output_expires_s: int | None = None, mixed: bool = False, once: Once | None = None) -> Batch:
        """Have a batch driven; it survives this process. Raises BadInput, also where its window cannot be kept by what was measured.

        ``once``: the idempotency key it stands behind, for as long as the batch is known. Raises KeyReused.
        """
        if once is not None and (before := self.behind(once)) is not None:
            return before
        if endpoint not in ENDPOINTS:
            raise BadInput(f"'endpoint' is {endpoint!r:.80}.", field="endpoint", value=endpoint, remedy=f"Use one of {', '.join(ENDPOINTS)}.")
        seconds = windows.window_s(completion_window)
        file = self.file(input_file_id)
        if file.purpose != "batch":
            raise BadInput(f"the file {input_file_id!r} has the purpose {file.purpose!r}.", field="input_file_id", value=input_file_id,
                           remedy="Upload the input with the purpose 'batch'.")
        survey, now = self.files.survey(file.id), time.time()
        auto = checked_auto(auto_model) or self.client.settings.api.auto_model
        ahead = self.records.active_of()
        needed = windows.seconds_needed(survey, ahead, self.records.throughput(), auto_model=auto)
        windows.check(seconds, str(completion_window), needed, now_s=now)
        order = Order.parse({
            "id": _id_of(once), "tenant": self.tenant, "endpoint": endpoint, "input_file_id": file.id,
            "completion_window": completion_window, "window_s": seconds, "created_at": int(now), "metadata": checked_metadata(metadata),
            "auto_model": auto, "output_expires_s": output_expires_s, "mixed": mixed,
            "digest": once.digest if once is not None else None})
        if not self.records.add(order, total=survey.lines) and once is not None and (before := self.behind(once)) is not None:
            return before
        return self.records.get(order.id)

    def behind(self, once: Once) -> Batch | None:
        """The batch that an idempotency key stands for, if it was used. Raises KeyReused."""
        try:
            found = self.records.get(_id_of(once), tenant=self.tenant)
        except UnknownJob:
            return None
        once.check(once.model_copy(update={"digest": found.order.digest}))
        return found

    def get(self, batch_id: str) -> Batch:
        """A batch as it stands."""
        if not _ID.fullmatch(batch_id):
            raise unknown(batch_id)
        return self.records.get(batch_id, tenant=self.tenant)

    def all(self, *, most: int = 20, after: str | None = None) -> tuple[list[Batch], bool]:
        """The newest first, and whether there are more."""
        return self.records.of_tenant(self.tenant, most=most, after=after)

    def cancel(self, batch_id: str) -> Batch:
        """Ask for a batch's end: what runs stops at its next token, what has ended is kept. Raises BadInput where it has ended or ends."""
        batch = self.get(batch_id)
        if not self.records.cancel(batch_id) and self.get(batch_id).status != "cancelling":
            raise BadInput(f"{batch_id} is {self.get(batch_id).status}, so it cannot be cancelled.", field="batch_id", value=batch_id)
        # at once, whoever drives it and whatever that is doing; the driver cancels what it was just submitting
        for job_id in Control(self.client.ledger).cancel(Control(self.client.ledger).tagged(f"batch:{batch.id}"))[:RUNG]:
            self.client.bell.advance(job_id, kind="cancelled")
        return self.get(batch_id)

    def resume(self, batch_id: str, *, completion_window: str | None = None) -> Batch:
        """Go on with the lines that a cancelled or expired batch has left; those that have ended are kept. One that has not ended is left as it is."""
        batch = self.get(batch_id)
        if not batch.ended:
            return batch
        if batch.status not in ("cancelled", "expired"):
            raise BadInput(f"{batch_id} is {batch.status}: nothing of it is left.", field="batch_id", value=batch_id)
        self._check_input(batch)
        seconds = windows.window_s(completion_window) if completion_window is not None else batch.order.window_s
        keep = [n for n, counts in self.records.marked(batch_id).items() if not counts.unfinished]
        self.records.resume(batch, expires_at=int(time.time()) + seconds, keep=keep)
        return self.get(batch_id)

    def _check_input(self, batch: Batch) -> None:
        try:
            self.file(batch.order.input_file_id)
        except UnknownJob:
            raise BadInput(f"the input of {batch.id}, {batch.order.input_file_id!r}, was deleted, so that the lines it has left cannot be asked.",
                           field="batch_id", value=batch.id, remedy="Upload it again and submit it as a new batch.") from None

    def lines(self, batch: Batch, which: Which) -> Iterator[bytes]:
        """The lines of its output or its error file; while it runs, those of the parts that are written."""
        file_id = batch.output_file_id if which == "out" else batch.error_file_id
        if batch.status in ENDED:
            return lines_of(self.content(file_id)) if file_id else iter(())
        return lines_of(Parts(self.client.archive.store, batch.id).read(which))


def _id_of(once: Once | None) -> str:
    """A batch's id: drawn, or that of its idempotency key, so that nothing else has to be kept of one."""
    return f"batch_{secrets.token_hex(12) if once is None else hashlib.sha256(once.name.encode()).hexdigest()[:24]}"


def checked_auto(model: str | None) -> str | None:
    """Who answers for ``auto``, if that may be a model's name. Raises BadInput; whether it is served is seen when it is asked."""
    if model is None:
        return None
    if is_team(model):
        try:
            read_team(model)
        except BadInput as error:
            raise BadInput(str(error), field="auto_model", value=model) from None
    elif not 0 < len(model) <= LONGEST_MODEL or model == "auto":
        raise BadInput(f"{model[:80]!r} cannot answer for 'auto'.", field="auto_model", value=model, remedy="Name a checkpoint or a team.")
    return model


def checked_metadata(raw: object) -> dict[str, str] | None:
    """OpenAI's metadata. Raises BadInput."""
    if raw is None:
        return None
    pairs: Sequence[tuple[Any, Any]] = list(raw.items()) if isinstance(raw, Mapping) else [(None, None)]
    if len(pairs) > MOST_PAIRS or any(not isinstance(k, str) or not isinstance(v, str) or len(k) > LONGEST_KEY or len(v) > LONGEST_VALUE for k, v in pairs):
        raise BadInput("'metadata' is no object of texts within the limits.", field="metadata",
                       remedy=f"Give at most {MOST_PAIRS} pairs, keys of {LONGEST_KEY} and values of {LONGEST_VALUE} characters.")
    return dict(pairs)


def checked_life(raw: object, field: str) -> int | None:
    """Seconds from ``{anchor: created_at, seconds}``. Raises BadInput."""
    if raw is None:
        return None
    seconds = raw.get("seconds") if isinstance(raw, Mapping) else None
    whole = isinstance(seconds, int) and not isinstance(seconds, bool)
    if not isinstance(raw, Mapping) or raw.get("anchor") != "created_at" or set(raw) != {"anchor", "seconds"} \
            or not whole or not SHORTEST_LIFE_S <= int(seconds or 0) <= LONGEST_LIFE_S:
        raise BadInput(f"{field!r} is {raw!r:.80}.", field=field, value=raw,
                       remedy=f"Give {{anchor: 'created_at', seconds: {SHORTEST_LIFE_S} to {LONGEST_LIFE_S}}}.")
    return seconds


def unknown(batch_id: str) -> BadInput:
    """The refusal of what is no batch's id."""
    return UnknownJob(f"there is no batch {batch_id[:80]!r}.", field="batch_id", value=batch_id, remedy="List them: `symposia batch list`.")
