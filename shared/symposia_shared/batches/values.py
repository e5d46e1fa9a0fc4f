"""What a batch is: the order, its file, where the lines of that are, how far it is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from symposia_shared.results import Result
from symposia_shared.values import Value

Purpose = Literal["batch", "batch_output"]
Status = Literal["validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"]
#: what a line's ``url`` may be
ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")
#: the states from which nothing follows
ENDED: frozenset[str] = frozenset({"completed", "failed", "expired", "cancelled"})

Label = Annotated[str, Field(max_length=512)]


class BatchFile(Value):
    """A file: a batch's input, or the answers to one."""

    id: str
    tenant: str
    filename: str
    bytes: int
    purpose: Purpose
    #: seconds since the epoch, as all times here
    created_at: int
    expires_at: int | None = None
    #: lines that are not blank
    lines: int = 0
    #: the form of the rows it was made of: ``parquet``, ``jsonl``; None: it is no table
    columns: Literal["parquet", "jsonl"] | None = None

    @property
    def content(self) -> str:
        """The key of its bytes."""
        return f"files/{self.id}/content"

    def view(self) -> dict[str, Any]:
        """The file in OpenAI's form."""
        return {"id": self.id, "object": "file", "bytes": self.bytes, "created_at": self.created_at, "filename": self.filename,
                "purpose": self.purpose, "status": "processed", "expires_at": self.expires_at, "status_details": None}


class Span(Value):
    """A run of lines of a file: ``lines`` that are not blank, the first of number ``first``."""

    offset: int
    length: int
    first: int
    lines: int


class Survey(Value):
    """What one reading of an input has found."""

    lines: int
    spans: tuple[Span, ...]
    #: lines that are no request, and the first hundred of them with the reason
    bad: int = 0
    #: numbers of the lines whose ``custom_id`` an earlier line has
    twice: tuple[int, ...] = ()
    #: model → lines that ask it; of a file with very many models, the first thousand
    models: dict[str, int] = Field(default_factory=dict)


class Order(Value):
    """A batch as it was asked for."""

    id: str
    tenant: str
    endpoint: str
    input_file_id: str
    completion_window: str
    #: seconds it may take
    window_s: int
    created_at: int
    metadata: dict[str, str] | None = None
    #: who answers lines whose model is ``auto``
    auto_model: str | None = None
    #: seconds after which its files are deleted
    output_expires_s: int | None = None
    #: the urls of its lines may differ from ``endpoint``, each one of ENDPOINTS
    mixed: bool = False
    #: digest of the body that an idempotency key stood for, where it was submitted with one
    digest: str | None = None


class Counts(Value):
    """What lines came to."""

    completed: int = 0
    failed: int = 0
    #: lines that the batch's end came before
    unfinished: int = 0
    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    turn_seconds: float = 0.0

    def plus(self, other: Counts) -> Counts:
        """Both together."""
        return Counts.model_construct(**{name: getattr(self, name) + getattr(other, name) for name in Counts.model_fields})

    def with_bills(self, results: Iterable[Result]) -> Counts:
        """These with what jobs used."""
        bills = [r.bill for r in results]
        return self.plus(Counts(calls=sum(b.calls for b in bills), prompt_tokens=sum(b.prompt_tokens for b in bills),
                                completion_tokens=sum(b.completion_tokens for b in bills), turn_seconds=round(sum(b.turn_seconds for b in bills), 6)))


class Batch(Value):
    """A batch as it stands."""

    order: Order
    status: Status
    #: status → when it came to it
    at: dict[str, int] = Field(default_factory=dict)
    total: int = 0
    counts: Counts = Counts()
    #: how often it was begun: 1, and once more for each resume
    attempt: int = 1
    #: it ends as, where that is decided
    end: Literal["", "expired", "cancelled"] = ""
    expires_at: int
    output_file_id: str | None = None
    error_file_id: str | None = None
    faults: tuple[dict[str, Any], ...] = ()
    #: lines a second of late; None while that is not known
    rate: float | None = None

    @property
    def id(self) -> str:
        return self.order.id

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.status in ENDED

    @property
    def left(self) -> int:
        """Lines that have not ended."""
        return max(0, self.total - self.counts.completed - self.counts.failed - self.counts.unfinished)

    @property
    def eta_s(self) -> float | None:
        """Seconds to its end at the present rate."""
        return None if self.ended or not self.rate else self.left / self.rate

    def view(self) -> dict[str, Any]:
        """The batch in OpenAI's form; ours in the field ``symposia``."""
        order, counts, at = self.order, self.counts, self.at
        return {
            "id": order.id, "object": "batch", "endpoint": order.endpoint, "model": None, "input_file_id": order.input_file_id,
            "completion_window": order.completion_window, "status": self.status, "created_at": order.created_at, "expires_at": self.expires_at,
            **{f"{status}_at": at.get(status) for status in ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")},
            "output_file_id": self.output_file_id, "error_file_id": self.error_file_id,
            "errors": {"object": "list", "data": list(self.faults)} if self.faults else None,
            "request_counts": {"total": self.total, "completed": counts.completed, "failed": counts.failed},
            "metadata": order.metadata,
            "usage": {"input_tokens": counts.prompt_tokens, "input_tokens_details": {"cached_tokens": 0}, "output_tokens": counts.completion_tokens,
                      "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": counts.prompt_tokens + counts.completion_tokens},
            "symposia": {"attempt": self.attempt, "unfinished": counts.unfinished, "calls": counts.calls, "turn_seconds": round(counts.turn_seconds, 3),
                         "lines_per_s": self.rate, "eta_s": self.eta_s, "auto_model": order.auto_model},
        }


def fault(code: str, message: str, *, line: int | None = None, param: str | None = None) -> dict[str, Any]:
    """One of a batch's ``errors``."""
    return {"code": code, "message": message, "param": param, "line": line}


def custom_id_fault(number: int) -> Mapping[str, str]:
    """What is said of a line whose ``custom_id`` was there before."""
    return {"code": "duplicate_custom_id", "message": f"an earlier line than line {number} has this custom_id; each needs one of its own."}
