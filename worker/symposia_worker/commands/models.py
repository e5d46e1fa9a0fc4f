"""``symposia models``: put checkpoints into the model store, look at them, verify and remove them."""

from __future__ import annotations

import json as jsons
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from symposia_worker.commands.pinning import pin, unpin
from symposia_worker.models.progress import shown

if TYPE_CHECKING:
    from symposia_worker.models.forms import Forms
    from symposia_worker.models.manifest import Manifest
    from symposia_worker.models.store import ModelStore

command = typer.Typer(no_args_is_help=True, help="The model store: checkpoints in S3, each verified byte for byte.")

command.command()(pin)
command.command()(unpin)

Folder = Annotated[Path | None, typer.Option("--dir", help="The stack's folder; default: SYMPOSIA_DIR or ~/.symposia.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print facts as JSON, and nothing else, on standard output.")]
Accept = Annotated[bool, typer.Option("--accept-licence", help="You have read the checkpoint's licence and accept it.")]
Untrained = Annotated[bool, typer.Option("--untrained", help="Store it though it predicts neither English nor code: random weights, another "
                                         "language. What was measured is recorded.")]
Model = Annotated[str, typer.Argument(metavar="ID", help="NAME or OWNER/NAME.")]
NoExport = Annotated[bool, typer.Option("--no-export", help="Make no forms for OpenVINO; torch serves it.")]


@command.command()
def pull(model: Model, accept_licence: Accept = False, untrained: Untrained = False, json: AsJson = False, dir: Folder = None,
         no_export: NoExport = False) -> None:
    """Fetch a checkpoint of the catalogue, or of the Hugging Face hub (OWNER/NAME), into the model store."""
    from symposia_worker.models import forms, ingest
    from symposia_worker.models.cache import cache_folder

    folder, models = _opened(dir)
    forms.own_name(model)
    with shown() as progress:
        stored = ingest.pull(models, model, cache=cache_folder(folder), accept_licence=accept_licence, untrained=untrained, progress=progress)
    if not no_export:
        _exported(models, stored, folder)
    _tell(stored, json)


@command.command()
def push(
    folder: Annotated[Path, typer.Argument(help="config.json, tokenizer and weights, as save_pretrained or a publisher wrote them.")],
    name: Annotated[str, typer.Option("--name", metavar="ID", help="What it is called here; a name of the catalogue stands for that checkpoint.")],
    accept_licence: Accept = False, untrained: Untrained = False, json: AsJson = False, dir: Folder = None, no_export: NoExport = False,
) -> None:
    """Store the checkpoint in a folder, made plain where it must be, after loading it once to see that model and tokenizer are right."""
    from symposia_worker.models import forms, ingest
    from symposia_worker.models.cache import cache_folder

    stack, models = _opened(dir)
    forms.own_name(name)
    with shown() as progress:
        stored = ingest.add_folder(models, folder, name, cache=cache_folder(stack), accept_licence=accept_licence, untrained=untrained,
                                   progress=progress)
    if not no_export:
        _exported(models, stored, stack)
    _tell(stored, json)


@command.command()
def add(
    what: Annotated[str, typer.Argument(metavar="ID|FOLDER", help="A checkpoint's id, or a folder.")],
    name: Annotated[str, typer.Option("--name", metavar="ID", help="What a folder is called here; default: its own name.")] = "",
    accept_licence: Accept = False, untrained: Untrained = False, json: AsJson = False, dir: Folder = None, no_export: NoExport = False,
) -> None:
    """Pull an id or alias of the catalogue or a repository of the hub, or push a folder; its entry is derived from its files.

    What transformers does not load natively is refused; so is a tokenizer that is larger than its model, lacks its bos, or with which
    the model predicts neither English nor code.
    """
    from symposia_worker.models.ingest import source_named

    source = source_named(what)
    if isinstance(source, Path):
        push(source, name or source.resolve().name, accept_licence, untrained, json, dir, no_export)
    else:
        pull(source, accept_licence, untrained, json, dir, no_export)


@command.command()
def export(model: Model, json: AsJson = False, dir: Folder = None) -> None:
    """Make the forms OpenVINO serves (exact, and fast with 8-bit weights), test and measure them, and store those that pass."""
    from symposia_worker.models import forms
    from symposia_worker.models.cache import cache_folder

    folder, models = _opened(dir)
    with shown() as progress:
        made = forms.make(models, model, cache=cache_folder(folder), threads=_cores(), progress=progress)
    _tell_forms(model, made, json)


@command.command()
def measure(model: Model, json: AsJson = False, dir: Folder = None) -> None:
    """Measure how fast a checkpoint's forms decode on this machine; `show` prints it."""
    from symposia_worker.models import forms
    from symposia_worker.models.cache import cache_folder

    folder, models = _opened(dir)
    with shown() as progress:
        measured = forms.measure(models, model, cache=cache_folder(folder), threads=_cores(), progress=progress)
    _tell_forms(model, measured, json)


@command.command("list")
def list_(json: AsJson = False, dir: Folder = None) -> None:
    """What is in the model store."""
    _, models = _opened(dir)
    found = models.list()
    if json:
        print(jsons.dumps([_facts(m) for m in found.checkpoints]))
    elif found.checkpoints:
        _print_table(found.checkpoints)
    elif not found.damaged:
        print("The model store is empty. Begin with: symposia models pull smollm2-135m")
    for damaged in found.damaged:
        raise damaged


def _under_its_checkpoint(stored: Manifest) -> tuple[str, str]:
    form = stored.facts.form_of
    return (form.id, form.mode) if form else (stored.id, "")


def _print_table(stored: Sequence[Manifest]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("id", "architecture", "parameters", "context", "can", "bytes", "licence", box=None, pad_edge=False, header_style="bold")
    for m in sorted(stored, key=_under_its_checkpoint):
        f = m.facts
        name = f"  openvino {f.form_of.mode}" if f.form_of else m.id
        table.add_row(name, f.architecture, f"{f.parameters:,}", str(f.context), " ".join(f.capabilities), f"{m.size:,}", f.licence)
    Console(width=None if sys.stdout.isatty() else 200).print(table)


@command.command()
def show(model: Model, json: AsJson = False, dir: Folder = None) -> None:
    """All that is known of one checkpoint."""
    from symposia_worker.models import forms

    _, models = _opened(dir)
    manifest = models.require(model)
    made = forms.told(models, manifest)
    if json:
        print(jsons.dumps({**_facts(manifest), "forms": made and made.model_dump(mode="json"),
                           "files": [f.model_dump(mode="json") for f in manifest.files]}))
        return
    for name, value in _facts(manifest).items():
        print(f"{name:20} {_shown_fact(value)}")
    if made is not None:
        _print_forms(made)
    for f in manifest.files:
        print(f"  {f.sha256}  {f.size:>14,}  {f.path}")


@command.command()
def verify(model: Model, json: AsJson = False, dir: Folder = None) -> None:
    """Read every byte of a checkpoint in the model store and compare; ends with an error naming the damaged file."""
    _, models = _opened(dir)
    with shown() as progress:
        manifest = models.verify(model, progress=progress)
    _answer(json, {"id": manifest.id, "revision": manifest.revision, "files": len(manifest.files), "bytes": manifest.size, "intact": True},
            f"{manifest.id} is intact: {len(manifest.files)} files, {manifest.size:,} bytes.")


@command.command()
def serve(
    model: Model,
    pool: Annotated[str | None, typer.Option(help="The pool that is to serve it; default: the one that serves least.")] = None,
    within: Annotated[float, typer.Option(min=1, help="Seconds to wait for it.")] = 600.0,
    json: AsJson = False, dir: Folder = None,
) -> None:
    """Let a running pool take a checkpoint up; it does so again whenever it starts."""
    from symposia_worker.commands.serving import serve as take_up

    chosen = take_up(model, pool, dir, within_s=within)
    _answer(json, {"id": model, "pool": chosen}, f"{model} is served by {chosen}.")


@command.command()
def rm(model: Model, json: AsJson = False, dir: Folder = None) -> None:
    """Remove a checkpoint from the model store. Pools that have it loaded keep it."""
    from symposia_worker.models import forms

    _, models = _opened(dir)
    objects = forms.remove(models, model) + models.remove(model)
    _answer(json, {"id": model, "objects_removed": objects}, f"{model} is removed ({objects} objects).")


def _opened(dir: Path | None) -> tuple[Path, ModelStore]:
    """The stack's folder and its model store."""
    from symposia_shared.errors import StackUnavailable
    from symposia_shared.settings import CREDENTIALS, load
    from symposia_shared.store import Store
    from symposia_worker.models.store import ModelStore

    settings = load(dir)
    named = settings.s3.endpoint_url or settings.s3.access_key or settings.external
    if not named and not (settings.dir / CREDENTIALS).exists():
        raise StackUnavailable(f"No model store is known: no stack has been started in {settings.dir}, and SYMPOSIA_S3__ENDPOINT_URL "
                               "is not set. Run `symposia up --detach`, or name the folder with --dir or SYMPOSIA_DIR.")
    return settings.dir, ModelStore(Store(settings.s3))


def _exported(models: ModelStore, stored: Manifest, stack: Path) -> None:
    """Make the forms of a checkpoint that was just stored, where that can be done here. What keeps it from having any ends nothing."""
    from symposia_shared.errors import SymposiaError
    from symposia_worker.models import forms
    from symposia_worker.models.cache import cache_folder

    if not forms.suits(stored):
        return
    if not forms.installed():
        print(f"{stored.id} has no forms for OpenVINO: `pip install 'symposia[openvino]'`, then `symposia models export {stored.id}`.", file=sys.stderr)
        return
    try:
        with shown() as progress:
            made = forms.make(models, stored.id, cache=cache_folder(stack), threads=_cores(), progress=progress)
    except SymposiaError as error:
        print(f"{stored.id} has no forms for OpenVINO: {error}", file=sys.stderr)
        return
    for line in _form_lines(made):
        print(line, file=sys.stderr)


def _tell_forms(model: str, made: Forms, json: bool) -> None:
    if json:
        print(jsons.dumps({"id": model, **made.model_dump(mode="json")}))
    else:
        _print_forms(made)


def _print_forms(made: Forms) -> None:
    for line in _form_lines(made):
        print(line)


def _form_lines(made: Forms) -> list[str]:
    """A table of precisions: torch, then each form with its bytes, loss of perplexity against torch float32, and tokens a second; or why not."""
    if made.refused:
        return [f"openvino             refused: {made.refused}"]
    kept = [r for r in made.reports if not r.refused]
    lines = [_columns("precision", "bytes", "perplexity", "loss", "tokens/s", "computes in", "cache")]
    lines += [_columns("torch float32", "", _figure(r.perplexity_float32, ".3f")) for r in made.reports[:1]]
    lines += [_columns(f"openvino {r.mode}", f"{r.bytes:,}", _figure(r.perplexity, ".3f"), _figure(r.loss, "+.2%"), _figure(r.tokens_per_s, ",.1f"),
                       r.activations, r.cache) for r in kept]
    lines += [f"{'openvino ' + r.mode:20} refused: {r.refused}" for r in made.reports if r.refused]
    lines += [f"tokens/s: {r.rows} at once, {r.threads} cores, {r.processor}" for r in kept[:1] if r.tokens_per_s is not None]
    return lines


def _columns(name: str, *cells: str) -> str:
    """A line of the table: figures to the right, words behind them."""
    widths = (16, 12, 9, 10, 13, 8)
    return f"{name:20}" + "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=False)).rstrip()


def _figure(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _shown_fact(value: Any) -> str:
    match value:
        case None | [] | "":
            return "-"
        case list():
            return " ".join(map(str, value))
        case dict():
            return ", ".join(f"{name} {part}" for name, part in value.items())
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
    return str(value)


def _cores() -> int:
    from symposia_worker.stack.devices import usable_cores

    return usable_cores()


def _facts(manifest: Manifest) -> dict[str, Any]:
    return {"id": manifest.id, "revision": manifest.revision, "bytes": manifest.size, **manifest.facts.model_dump(mode="json")}


def _tell(manifest: Manifest, json: bool) -> None:
    f = manifest.facts
    _answer(json, _facts(manifest), f"{manifest.id} is in the model store: {f.architecture}, {f.parameters:,} parameters, "
            f"{manifest.size:,} bytes, {f.licence}, revision {manifest.revision[:12]}.")


def _answer(json: bool, facts: dict[str, Any], sentence: str) -> None:
    print(jsons.dumps(facts) if json else sentence)
