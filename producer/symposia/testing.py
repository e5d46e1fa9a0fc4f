"""A client for tests: scripted replies, submitted jobs assertable, no Redis, no S3, no model.

As a pytest fixture (this module is a pytest plugin):

    def test_a_ticket_is_answered(scripted_client):
        scripted_client.say("smollm2-135m", "refund")
        assert my_app.route(ticket, client=scripted_client) == "refund"
        assert scripted_client.jobs[0].prompt == ticket.text

Plays run for real, so votes, early stops and failures behave as they do on a stack.
"""

from __future__ import annotations

import uuid
from collections import deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datetime import datetime

    from symposia_shared.jobs import Job
    from symposia_shared.prompts import Sampling
    from symposia_shared.results import Result, RoundRecord, Score
    from symposia_shared.standing import Status
    from symposia_shared.turns import Cause, Reply, Turn

import pytest


class ScriptedHandle:
    """The handle of a job that was played at once."""

    def __init__(self, found: Result) -> None:
        self._found, self.job_id = found, found.job_id

    def status(self) -> Status:
        """The job's end."""
        from symposia_shared.standing import Status

        return Status(job_id=self.job_id, state=self._found.state)

    def wait(self, timeout: float | None = None) -> Result:
        """The result."""
        return self._found

    def result(self, timeout: float | None = None) -> Result:
        """The result; raises what the job ended with."""
        return self._found.raise_for_state()

    def rounds(self) -> Iterator[RoundRecord]:
        """The rounds."""
        return iter(self._found.rounds)

    def cancel(self) -> bool:
        """False: it has ended."""
        return False


class ScriptedClient:
    """``Client`` over scripted replies. A model without a script of its own answers as the ``test/*`` checkpoints do, or abstains."""

    def __init__(self) -> None:
        #: every job submitted, in order
        self.jobs: list[Job] = []
        #: who was to be told of each one's end
        self.told: list[dict[str, Any]] = []
        #: every turn asked, in order
        self.turns: list[Turn] = []
        self._script: dict[str, deque[Reply]] = {}
        self._last: dict[str, Reply] = {}

    def say(self, model: str, *texts: str) -> None:
        """What ``model`` answers, turn after turn; the last one is repeated."""
        from symposia_shared.turns import Completion

        self._script.setdefault(model, deque()).extend(Completion(text=t) for t in texts)

    def fail(self, model: str, cause: Cause, message: str = "") -> None:
        """Let ``model`` abstain for ``cause`` at its next turn."""
        from symposia_shared.turns import Abstention

        self._script.setdefault(model, deque()).append(Abstention(cause=cause, message=message))

    def submit(self, job: Job, *, job_id: str | None = None, at: datetime | None = None, delay_s: float = 0.0, **told: Any) -> ScriptedHandle:
        """Play a job at once, whenever it is due. Nobody is told of its end: ``webhook``, ``link`` and ``link_error`` are put into ``told``."""
        from symposia_shared.rehearsal import rehearse

        if set(told) - {"webhook", "link", "link_error"}:
            raise TypeError(f"submit has no argument {sorted(set(told) - {'webhook', 'link', 'link_error'})[0]!r}")
        job = job.seeded(0)
        self.jobs.append(job)
        self.told.append(told)
        return ScriptedHandle(rehearse(job, self._reply).result(job_id or uuid.uuid4().hex, job))

    def submit_many(self, jobs: Sequence[Job], *, job_ids: Sequence[str] | None = None) -> list[ScriptedHandle]:
        """Play jobs at once, in order."""
        ids: Sequence[str | None] = job_ids if job_ids is not None else [None] * len(jobs)
        return [self.submit(job, job_id=job_id) for job, job_id in zip(jobs, ids, strict=True)]

    def ask(self, prompt: str, *, model: str, system: str | None = None, timeout: float | None = None, sampling: Sampling | None = None) -> str:
        """One prompt to one model."""
        from symposia.asking import question

        return self.submit(question(prompt, model=model, system=system, sampling=sampling)).result(timeout).answer or ""

    def embed(self, texts: Sequence[str], *, model: str, timeout: float | None = None) -> list[list[float]]:
        """A vector for each text."""
        from symposia.asking import embeddings, vectors_of

        return [list(v) for job in embeddings(texts, model=model) for v in vectors_of(self.submit(job).result(timeout))]

    def score(self, text: str, *, model: str, given: str | None = None, timeout: float | None = None) -> Score:
        """How likely ``model`` finds ``text``."""
        from symposia.asking import score_of, scoring

        return score_of(self.submit(scoring(text, model=model, given=given)).result(timeout))

    def _reply(self, number: int, place: int, turn: Turn) -> Reply:
        from symposia_shared.scripted import scripted_reply
        from symposia_shared.turns import Abstention

        self.turns.append(turn)
        waiting = self._script.get(turn.model)
        if waiting:
            self._last[turn.model] = waiting.popleft()
        if turn.model in self._last:
            return self._last[turn.model]
        if turn.model.startswith("test/"):
            return scripted_reply(turn.model, turn.messages, turn.sampling, want=turn.want, suffix=turn.suffix)
        return Abstention(cause="refused", message=f"no reply is scripted for {turn.model!r}; call say({turn.model!r}, ...)")


@pytest.fixture
def scripted_client() -> ScriptedClient:
    """A client whose models say what the test tells them to."""
    return ScriptedClient()
