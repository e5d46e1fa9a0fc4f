"""``symposia vote`` and ``symposia weights fit``: consensus over answers that were recorded before, without any service."""

from __future__ import annotations

import codecs
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any, BinaryIO, cast

import typer
from pydantic import BeforeValidator, Field, ValidationError

from symposia_shared.answers import AnswerKind, canonical, compared, extract, kind_of
from symposia_shared.behaviour import behaviours, code_runs_here
from symposia_shared.consensus import ConsensusName, Likeness, Weights, decide, fit
from symposia_shared.errors import BadInput
from symposia_shared.values import Value, bad_input
from symposia_shared.verdicts import Ballot


class Kind(StrEnum):
    """The kinds of answer, as the command line lists them."""

    auto = "auto"
    number = "number"
    choice = "choice"
    latex = "latex"
    python_literal = "python_literal"
    json = "json"
    label = "label"
    code = "code"
    text = "text"


class Consensus(StrEnum):
    """The consensus algorithms, as the command line lists them."""

    majority_vote = "majority_vote"
    weighted_vote = "weighted_vote"
    best_response = "best_response"
    all_agree = "all_agree"


class _Loose(Value):
    """A value read from a file that others wrote: what it does not know, it leaves aside."""

    model_config = Value.model_config | {"extra": "ignore"}


def _scalar(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, str | int | float | None):
        raise ValueError(f"{str(value)[:60]!r} is neither text nor a number.")
    return value


def _named(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError(f"{str(value)[:60]!r} is neither text nor a whole number.")
    return value


Id = Annotated[str | int, BeforeValidator(_named)]
Gold = Annotated[str | int | float | None, BeforeValidator(_scalar)]


class Answer(_Loose):
    """One model's recorded answer."""

    model: str
    text: str | None
    params_b: float | None = None
    score: float | None = None


class AnswerSet(_Loose):
    """A line: the answers to one question."""

    id: Id
    answers: tuple[Answer, ...]
    kind: str | None = None
    gold: Gold = None
    question: str | None = None
    labels: tuple[str, ...] = ()
    #: kind ``code``: expressions whose values tell programs apart
    probe_calls: tuple[str, ...] = Field((), max_length=1000)


File = Annotated[str, typer.Argument(
    metavar="ANSWERS.jsonl", help="Lines {id, answers: [{model, text, params_b?, score?}], kind?}; - reads standard input.",
)]
KindOption = Annotated[Kind, typer.Option(
    help="How answers are read and compared. auto: each line's own kind, else found out from its answers.",
)]


def vote(
    file: File,
    consensus: Annotated[Consensus, typer.Option(help="The consensus algorithm.")] = Consensus.majority_vote,
    kind: KindOption = Kind.auto,
    weights: Annotated[Path | None, typer.Option(help="Measured weights, from `symposia weights fit`.")] = None,
) -> None:
    """Decide recorded answers again: one line {id, answer, agreement, n, votes} per line, in their order.

    A line that cannot be read is reported on standard error and left out; the exit code is then 2. A kind named by
    --kind is used for every line; otherwise a line's own "kind" is ("open" is text), and without one it is found out.
    """
    measured = read_weights(weights) if weights else None
    with _opened(file) as lines:
        bad = _each_line(lines, lambda row: _print(decided(row, consensus.value, kind=kind.value, weights=measured)))
    if bad:
        raise typer.Exit(BadInput.exit_code)


def weights_fit(
    file: File,
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the weights are written, as JSON.")],
    kind: KindOption = Kind.auto,
) -> None:
    """Fit weights from labelled answers: the lines of `symposia vote`, each with its "gold" answer.

    An answer counts as right when its canonical form is that of the gold one; a model's texts without an answer do
    not count, since they do not vote either.
    """
    marked: Counter[tuple[str, bool]] = Counter()
    with _opened(file) as lines:
        bad = _each_line(lines, lambda row: marked.update(_marked(row, kind.value)))
    fitted = fit(marked.elements())
    try:
        out.write_text(fitted.to_json() + "\n", encoding="utf-8")
    except OSError as error:
        raise BadInput(f"{out} cannot be written: {error.strerror}.", field="out", value=str(out), remedy="Name another file.") from None
    for model in fitted.models:
        seen = fitted.models[model]
        typer.echo(f"{fitted.weight(model):6.3f}  {seen.right}/{seen.n}  {model}", err=True)
    if bad:
        raise typer.Exit(BadInput.exit_code)


def decided(row: AnswerSet, name: ConsensusName, *, kind: str = "auto", weights: Weights | None = None) -> dict[str, Any]:
    """The line that answers ``row``."""
    ballots = [Ballot(member=a.model, model=a.model, text=a.text, params_b=a.params_b, score=a.score) for a in row.answers]
    chosen = kind_in_force(row, kind)
    ran = None
    if chosen == "code" and row.probe_calls and code_runs_here():
        programs = [None if b.text is None else extract(b.text, "code") for b in ballots]
        ran = behaviours(programs, row.probe_calls, prompt=row.question or "")
    likeness = likeness_of([b.text for b in ballots if b.text]) if chosen == "text" else None
    verdict = decide(name, ballots, kind=chosen, weights=weights, labels=row.labels, behaviours=ran, likeness=likeness)
    votes = [{"model": v.model, "extracted": v.extracted} for v in verdict.votes]
    return {"id": row.id, "answer": verdict.answer, "agreement": verdict.agreement, "n": verdict.n, "votes": votes}


def kind_in_force(row: AnswerSet, asked: str = "auto") -> AnswerKind:
    """The kind asked for; else the line's own; else what its answers look like. Raises BadInput for an unknown one."""
    kind = asked if asked != "auto" else "text" if row.kind == "open" else row.kind or "auto"
    if kind not in Kind.__members__:
        raise BadInput(f'"kind" is {kind!r}.', field="kind", value=kind, remedy=f"Write one of {', '.join(Kind.__members__)}.")
    if kind != "auto":
        return cast(AnswerKind, kind)
    return kind_of([a.text for a in row.answers if a.text], question=row.question, labels=row.labels)


def likeness_of(texts: Sequence[str]) -> Likeness | None:
    """How alike ``texts`` are by the model that an installed package offers as a ``symposia.likeness``; None where none does."""
    for offered in entry_points(group="symposia.likeness"):
        found: Likeness | None = offered.load()(texts)
        if found is not None:
            return found
    return None


def read_weights(path: Path) -> Weights:
    """The weights in a file. Raises BadInput."""
    try:
        return Weights.from_json(path.read_bytes())
    except BadInput as error:
        raise BadInput(f"{path} holds no weights: {error}", field="weights", value=str(path),
                       remedy="Write it with `symposia weights fit labelled.jsonl -o weights.json`.") from None
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}.", field="weights", value=str(path),
                       remedy="Write it with `symposia weights fit labelled.jsonl -o weights.json`.") from None


def _marked(row: AnswerSet, asked: str) -> Iterator[tuple[str, bool]]:
    if row.gold is None:
        raise BadInput('there is no "gold" answer.', field="gold", remedy='Add "gold" to the line.')
    kind = kind_in_force(row, asked)
    gold = canonical(str(row.gold), kind, labels=row.labels)
    if gold is None:
        raise BadInput(f'"gold" is {str(row.gold)[:80]!r}, in which there is no {kind}.', field="gold", remedy='Correct "gold" or "kind".')
    for answer in row.answers:
        found = None if answer.text is None else extract(answer.text, kind, labels=row.labels)
        if found is not None:
            yield answer.model, compared(found, kind) == gold


def _each_line(lines: BinaryIO, use: Callable[[AnswerSet], None]) -> int:
    """Give each line's row to ``use``; the number of lines that could not be read, each reported on standard error.

    An id that comes again and a file without lines are remarked on there, too. Raises BadInput for a JSON array over several lines.
    """
    bad, first_seen = 0, dict[str | int, int]()
    number = 0
    for number, line in enumerate(lines, start=1):
        text = line.removeprefix(codecs.BOM_UTF8).strip() if number == 1 else line.strip()
        if number == 1 and text == b"[":
            raise BadInput("this is one JSON array over several lines.", field="file", remedy="Write one object per line: jq -c '.[]' FILE")
        if not text:
            continue
        try:
            row = _row(text)
            use(row)
        except BadInput as error:
            bad += 1
            typer.echo(f"line {number}: {error}", err=True)
            continue
        before = first_seen.setdefault(row.id, number)
        if before != number:
            typer.echo(f"line {number}: the id {row.id!r} stands in line {before}, too; both are used.", err=True)
    if not first_seen and not bad:
        typer.echo("there are no lines to read.", err=True)
    return bad


def _row(line: bytes) -> AnswerSet:
    try:
        raw = json.loads(line.decode("utf-8"), parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"this is not JSON: {error}.", remedy="Give one JSON object per line.") from None
    if not isinstance(raw, dict):
        raise BadInput(f"this is a JSON {type(raw).__name__}, not an object.", remedy="Give one JSON object per line.")
    try:
        return AnswerSet.model_validate(_encodable(raw))
    except ValidationError as error:
        raise bad_input(AnswerSet, error) from None


def _encodable(value: Any) -> Any:
    """The same JSON value, halves of surrogate pairs replaced: they cannot be written as UTF-8."""
    match value:
        case str():
            return value.encode("utf-8", "replace").decode()
        case list():
            return [_encodable(v) for v in value]
        case dict():
            return {_encodable(k): _encodable(v) for k, v in value.items()}
        case _:
            return value


def _refuse(word: str) -> Any:
    raise ValueError(f"{word} is no JSON number")


def _print(row: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(row, ensure_ascii=False) + "\n")


@contextmanager
def _opened(file: str) -> Iterator[BinaryIO]:
    if file == "-":
        yield sys.stdin.buffer
        return
    try:
        lines = open(file, "rb")  # noqa: SIM115 - closed below; an error while it is used is not an error of opening it
    except OSError as error:
        raise BadInput(f"{file} cannot be read: {error.strerror}.", field="file", value=file, remedy="Name a file of JSON lines.") from None
    with lines:
        yield lines


