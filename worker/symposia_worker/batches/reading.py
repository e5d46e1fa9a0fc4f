"""A batch's input, span by span."""

from __future__ import annotations

import time
from collections.abc import Iterator

from symposia_shared.archive import Archive
from symposia_shared.batches.lines import Unmet, no_request, question_of, refused
from symposia_shared.batches.values import Order, Span, Survey
from symposia_shared.ledger import Ledger
from symposia_shared.ledger.tenants import Teams
from symposia_shared.openai.lines import BadLine
from symposia_shared.openai.naming import RequestLimits
from symposia_shared.store import Replaced
from symposia_shared.teams import NAME, Team, is_team, read_team
from symposia_worker.batches.spans import OpenSpan

#: seconds a saved team is remembered
TEAM_S = 5.0


class Input:
    """The input of one batch. Raises ``store.Replaced`` where the file is gone."""

    def __init__(self, order: Order, survey: Survey, *, ledger: Ledger, archive: Archive, limits: RequestLimits) -> None:
        self.order, self.survey, self.limits = order, survey, limits
        self._store, self._key = archive.store, f"files/{order.input_file_id}/content"
        head = self._store.head(self._key)
        if head is None:
            raise Replaced(self._key)
        self._etag = head.etag
        self._twice = frozenset(survey.twice)
        self._saved = Teams(ledger, order.tenant)
        self._teams: dict[str, tuple[float, Team | None]] = {}

    def open(self, number: int) -> OpenSpan:
        """A span with what its lines ask; what is no request, or none that can be met, is written at once."""
        span = OpenSpan(number)
        for at, raw in self._lines(self.survey.spans[number]):
            request_id = f"{self.order.id}-{at}"
            try:
                span.todo.append(question_of(raw, at, self.order, twice=at in self._twice, team_named=self._team, limits=self.limits))
            except BadLine as error:
                span.write(no_request(at, error, request_id=request_id))
            except Unmet as unmet:
                span.write(refused(at, unmet.custom_id, unmet.error, request_id=request_id))
        return span

    def _lines(self, at: Span) -> Iterator[tuple[int, bytes]]:
        got = b""
        while len(got) < at.length:
            got += self._store.get_range(self._key, at.offset + len(got), length=at.length - len(got), etag=self._etag)
        for number, raw in enumerate(got.split(b"\n"), start=at.first):
            if raw.strip():
                yield number, raw

    def _team(self, model: str) -> Team | None:
        if is_team(model):
            return read_team(model)
        if not NAME.fullmatch(model):
            return None
        known = self._teams.get(model)
        if known is None or time.monotonic() - known[0] > TEAM_S:
            known = self._teams[model] = (time.monotonic(), self._saved.get(model))
        return known[1]
