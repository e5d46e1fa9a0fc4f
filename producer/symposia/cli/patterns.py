"""One command per pattern, made from the pattern's own fields; and ``schema``."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from symposia.cli import show
from symposia.cli.jobs import finish, prompt_text, sampling_of
from symposia.cli.options import IdempotencyKey
from symposia.cli.vote import read_weights
from symposia.client import Client
from symposia_shared.errors import BadInput
from symposia_shared.jobs import Collaboration
from symposia_shared.patterns import kind_of, patterns
from symposia_shared.prompts import Sampling

#: fields that have a form of their own on the command line
_SPECIAL = {"kind", "prompt", "members", "sampling", "tags", "priority", "deadline_s"}


def register(app: typer.Typer) -> None:
    """Add a command for each pattern, and ``schema``."""
    for name, cls in patterns().items():
        app.command(name.replace("_", "-"), rich_help_panel="Patterns", help=(cls.__doc__ or "").split("\n\n")[0])(command_of(cls))
    app.command(rich_help_panel="Patterns")(schema)


def schema(name: Annotated[str, typer.Argument(help="inference, embedding, or a pattern's name.")]) -> None:
    """The JSON schema of a job."""
    from symposia_shared.jobs import SINGLE_TURN

    known: dict[str, type[Any]] = {**SINGLE_TURN, **patterns()}
    cls = known.get(name.replace("-", "_"))
    if cls is None:
        raise BadInput(f"there is no job {name!r}.", field="name", value=name, remedy=f"Choose {', '.join(known)}.")
    show.facts(cls.model_json_schema())


def command_of(cls: type[Collaboration]) -> Callable[..., None]:
    """A function typer can read: the prompt, ``--member`` and an option for each further field of the pattern."""
    own = {name: field for name, field in cls.model_fields.items() if name not in _SPECIAL}

    def command(**given: Any) -> None:
        base = cls.model_fields["sampling"].default
        sampling = sampling_of(base if isinstance(base, Sampling) else Sampling(), given["temperature"], given["max_tokens"], given["seed"])
        raw: dict[str, Any] = {name: given[name] for name in own if given[name] not in (None, [])}
        if raw.get("weights") is not None:
            raw["weights"] = read_weights(Path(raw["weights"])).model_dump()
        job = cls.parse({**raw, "kind": kind_of(cls), "prompt": prompt_text(given["prompt"]), "members": [_member(m) for m in given["member"]],
                         "sampling": sampling.model_dump(), "deadline_s": given["deadline"]})
        with Client(given["dir"]) as client:
            finish(client, job, json=given["json"], no_wait=given["no_wait"], timeout=given["timeout"], once=given["idempotency_key"])

    fixed = inspect.signature(_common, eval_str=True).parameters.values()
    options = [_parameter(name, field) for name, field in own.items()]
    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in fixed]
    setattr(command, "__signature__", inspect.Signature([*parameters, *options]))  # noqa: B010 - what typer reads
    command.__annotations__ = {p.name: p.annotation for p in [*parameters, *options]}
    command.__doc__ = cls.__doc__
    return command


def _common(
    prompt: Annotated[str, typer.Argument(help="What is asked; - reads standard input.")],
    member: Annotated[list[str], typer.Option("--member", help="MODEL or NAME=MODEL; give one per seat.")],
    deadline: Annotated[float, typer.Option(help="Seconds after which the job is closed with what there is.")] = 3600.0,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="At most so many new tokens a turn.")] = None,
    seed: Annotated[int | None, typer.Option(help="Fixes every draw of the job.")] = None,
    idempotency_key: IdempotencyKey = None,
    timeout: Annotated[float | None, typer.Option(help="Seconds to wait; the job goes on after them.")] = None,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Print the job's id and return.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    dir: Annotated[str | None, typer.Option("--dir", help="The stack's folder; default: SYMPOSIA_DIR or ~/.symposia.")] = None,
) -> None:
    """What every pattern's command takes."""


def _member(text: str) -> dict[str, str]:
    head, sign, tail = text.partition("=")
    if sign and not text.startswith("test/") and "/" not in head:
        return {"name": head, "model": tail}
    return {"model": text}


def _parameter(name: str, field: FieldInfo) -> inspect.Parameter:
    """An option for one field: choices for a literal, a flag for a boolean, a repeated option for a tuple."""
    kind, default = _plain(field.annotation), field.get_default(call_default_factory=True)
    help_text = field.description or (f"Default: {default}." if default not in (None, ()) else None)
    if get_origin(kind) is tuple:
        inner: Any = list[str]
        default = list(default or ())
    elif get_origin(kind) is Literal or kind is str:
        inner = Annotated[str | None, typer.Option(help=_choices(kind) or help_text)]
        return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=inner)
    elif kind in (int, float, bool):
        inner = kind if kind is bool else kind | None
    else:
        inner = str | None
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[inner, typer.Option(help=help_text)])


def _choices(kind: Any) -> str | None:
    return " | ".join(map(str, get_args(kind))) if get_origin(kind) is Literal else None


def _plain(annotation: Any) -> Any:
    """The type without ``Annotated`` and ``None``."""
    if get_origin(annotation) is Annotated:
        return _plain(get_args(annotation)[0])
    if get_origin(annotation) is Union or type(annotation).__name__ == "UnionType":
        rest = [a for a in get_args(annotation) if a is not NoneType]
        return _plain(rest[0]) if len(rest) == 1 else str
    return annotation
