"""``symposia models``: put checkpoints into the model store, look at them, verify and remove them."""

from __future__ import annotations

import json as jsons
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from symposia_worker.commands import keeping
from symposia_worker.commands.pinning import pin, unpin
from symposia_worker.models.progress import shown

if TYPE_CHECKING:
    from symposia_shared.catalogue import HubSource, S3Source
    from symposia_shared.settings import Settings
    from symposia_shared.store import Store
    from symposia_worker.models.forms import Forms
    from symposia_worker.models.ingest import Terms
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
Base = Annotated[str, typer.Option("--base", metavar="ID", help="Of a LoRA adapter: what its base is called here, where it calls it otherwise.")]
Model = Annotated[str, typer.Argument(metavar="ID", help="NAME or OWNER/NAME.")]
Profile = Annotated[str | None, typer.Option(help="Of an s3:// source: the profile of boto3's configuration that knows its S3 and keys.")]
Endpoint = Annotated[str | None, typer.Option(help="Of an s3:// source: its S3, where it is another one.")]
NoExport = Annotated[bool, typer.Option("--no-export", help="Make no forms for OpenVINO; torch serves it.")]


@command.command()
def pull(
    model: Annotated[str, typer.Argument(metavar="ID", help="NAME or OWNER/NAME, of the catalogue or the hub; or s3://BUCKET/PREFIX.")],
    name: Annotated[str, typer.Option("--name", metavar="ID", help="What it is called here; default: as there.")] = "",
    revision: Annotated[str, typer.Option(help="Of the hub: a commit, a tag or a branch. What is fetched is pinned to its commit.")] = "",
    accept_licence: Accept = False, untrained: Untrained = False, json: AsJson = False, dir: Folder = None, no_export: NoExport = False,
    profile: Profile = None, endpoint_url: Endpoint = None,
) -> None:
    """Fetch a checkpoint of the catalogue, of the Hugging Face hub (OWNER/NAME) or of another bucket into the model store."""
    from symposia_worker.models import forms, ingest
    from symposia_worker.models.cache import cache_folder

    folder, models = opened(dir)
    source, called = _source(model, name, revision)
    forms.own_name(called)
    bucket = _bucket(model, profile, endpoint_url, dir) if model.startswith("s3://") else None
    with shown() as progress:
        stored = ingest.pull(models, called, cache=cache_folder(folder), terms=_terms(accept_licence, dir), untrained=untrained, source=source,
                             bucket=bucket, progress=progress)
    if not no_export:
        _exported(models, stored, folder)
    _tell(stored, json)


@command.command()
def push(
    folder: Annotated[Path, typer.Argument(help="config.json, tokenizer and weights, as save_pretrained or a publisher wrote them.")],
    name: Annotated[str, typer.Option("--name", metavar="ID", help="What it is called here; a name of the catalogue stands for that checkpoint.")],
    accept_licence: Accept = False, untrained: Untrained = False, json: AsJson = False, dir: Folder = None, no_export: NoExport = False,
    base: Base = "",
) -> None:
    """Store the checkpoint, or LoRA adapter, in a folder, made plain where it must be, after loading it once to see that model and tokenizer are right."""
    from symposia_worker.models import forms, ingest
    from symposia_worker.models.cache import cache_folder

    stack, models = opened(dir)
    forms.own_name(name)
    with shown() as progress:
        stored = ingest.add_folder(models, folder, name, cache=cache_folder(stack), terms=_terms(accept_licence, dir), untrained=untrained,
                                   base=base, progress=progress)
    if not no_export:
        _exported(models, stored, stack)
    _tell(stored, json)


@command.command()
def add(
    what: Annotated[str, typer.Argument(metavar="ID|FOLDER|FILE", help="A checkpoint's id, a folder, s3://BUCKET/PREFIX, or a file of entries.")],
    name: Annotated[str, typer.Option("--name", metavar="ID", help="What a folder is called here; default: its own name.")] = "",
    accept_licence: Accept = False, untrained: Untrained = False, json: AsJson = False, dir: Folder = None, no_export: NoExport = False,
    profile: Profile = None, endpoint_url: Endpoint = None, base: Base = "",
) -> None:
    """Pull an id or alias of the catalogue, a repository of the hub or a bucket's folder, push a folder, or register the entries of a file.

    An entry is derived from the checkpoint's files. What transformers does not load natively is refused; so is a tokenizer that is larger
    than its model, lacks its bos, or with which the model predicts neither English nor code. A file (.toml, .json, .jsonl, in the catalogue's
    form) registers where checkpoints may be had: every entry is validated, and nothing is fetched before it is pulled.
    """
    from symposia_worker.models.ingest import source_named

    if Path(what).suffix in (".toml", ".json", ".jsonl") and not Path(what).expanduser().is_dir():
        _register(Path(what), json, dir)
        return
    source = what if what.startswith("s3://") else source_named(what)
    if isinstance(source, Path):
        push(source, name or source.resolve().name, accept_licence, untrained, json, dir, no_export, base)
    else:
        pull(source, name, "", accept_licence, untrained, json, dir, no_export, profile, endpoint_url)


@command.command()
def export(model: Model, json: AsJson = False, dir: Folder = None) -> None:
    """Make the forms OpenVINO serves (exact, and fast with 8-bit weights), test and measure them, and store those that pass."""
    from symposia_worker.models import forms
    from symposia_worker.models.cache import cache_folder

    folder, models = opened(dir)
    with shown() as progress:
        made = forms.make(models, model, cache=cache_folder(folder), threads=_cores(), progress=progress)
    _tell_forms(model, made, json)


@command.command()
def measure(model: Model, json: AsJson = False, dir: Folder = None) -> None:
    """Measure how fast a checkpoint's forms decode on this machine; `show` prints it."""
    from symposia_worker.models import forms
    from symposia_worker.models.cache import cache_folder

    folder, models = opened(dir)
    with shown() as progress:
        measured = forms.measure(models, model, cache=cache_folder(folder), threads=_cores(), progress=progress)
    _tell_forms(model, measured, json)


@command.command("list")
def list_(check: Annotated[bool, typer.Option("--check", help="Read every manifest instead of the index, and draw the index again.")] = False,
          json: AsJson = False, dir: Folder = None) -> None:
    """What is in the model store, and what is registered and not stored yet."""
    from symposia_worker.commands.listing import list_models

    list_models(_known(dir).s3, json=json, check=check)


command.command("prefetch")(keeping.prefetch)
command.command("gc")(keeping.gc)


@command.command()
def show(model: Model, json: AsJson = False, dir: Folder = None) -> None:
    """All that is known of one checkpoint."""
    from symposia_worker.models import forms

    _, models = opened(dir)
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
def verify(model: Model, cache: Annotated[bool, typer.Option("--cache", help="The copy in this machine's cache instead.")] = False,
           json: AsJson = False, dir: Folder = None) -> None:
    """Read every byte of a checkpoint in the model store and compare; ends with an error naming the damaged file."""
    from symposia_worker.models.cache import cache_folder, shared_cache

    stack, models = opened(dir)
    with shown() as progress:
        if cache:
            shared_cache(cache_folder(stack)).verify(models, model)
        manifest = models.require(model) if cache else models.verify(model, progress=progress)
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
def rm(model: Model, force: Annotated[bool, typer.Option("--force", help="Though adapters go on from it; no pool loads them then.")] = False,
       json: AsJson = False, dir: Folder = None) -> None:
    """Remove a checkpoint from the model store. Pools that have it loaded keep it. A base of stored adapters is refused."""
    from symposia_worker.models import forms

    _, models = opened(dir)
    if not force:
        _refuse_base(models, model)
    objects = forms.remove(models, model) + models.remove(model)
    _answer(json, {"id": model, "objects_removed": objects}, f"{model} is removed ({objects} objects).")


def _refuse_base(models: ModelStore, model: str) -> None:
    from symposia_shared.errors import BadInput

    if adapters := models.adapters_of(model):
        raise BadInput(f"{model} is the base of {len(adapters)} stored adapters: {', '.join(adapters)}.", field="model", value=model,
                       remedy="Remove them first; or use --force, and no pool loads them until it is stored again.")


def opened(dir: Path | None) -> tuple[Path, ModelStore]:
    """The stack's folder and its model store."""
    from symposia_shared.store import Store
    from symposia_worker.models.store import ModelStore

    settings = _known(dir)
    return settings.dir, ModelStore(Store(settings.s3))


def _known(dir: Path | None) -> Settings:
    """The settings. Raises StackUnavailable where they know no model store."""
    from symposia_shared.errors import StackUnavailable
    from symposia_shared.settings import CREDENTIALS, load

    settings = load(dir)
    named = settings.s3.endpoint_url or settings.s3.access_key or settings.external
    if not named and not (settings.dir / CREDENTIALS).exists():
        raise StackUnavailable(f"No model store is known: no stack has been started in {settings.dir}, and SYMPOSIA_S3__ENDPOINT_URL "
                               "is not set. Run `symposia up --detach`, or name the folder with --dir or SYMPOSIA_DIR.")
    return settings


def _terms(accepted: bool, dir: Path | None) -> Terms:
    from symposia_shared.settings import load
    from symposia_worker.models.ingest import Terms

    return Terms(accepted=accepted, non_commercial=load(dir).allow_non_commercial)


def _source(model: str, name: str, revision: str) -> tuple[HubSource | S3Source | None, str]:
    """Where ``model`` is fetched from, None: as the catalogue says, and what it is called here. Raises BadInput."""
    from symposia_shared.catalogue import HubSource, S3Source
    from symposia_shared.errors import BadInput

    if model.startswith("s3://"):
        source = S3Source.parse({"uri": model, "revision": "main"})
        if revision:
            raise BadInput("a bucket's folder has no revisions.", field="--revision", value=revision, remedy="Leave it out.")
        return source, name or source.prefix.removeprefix("models/") if source.prefix.startswith("models/") else name or source.prefix.rsplit("/", 1)[-1]
    if revision or name:
        return HubSource(repo=model, revision=revision or "main"), name or model
    return None, model


def _bucket(uri: str, profile: str | None, endpoint_url: str | None, dir: Path | None) -> Store:
    """The bucket of an s3:// source: by the options, else by SYMPOSIA_SOURCE__*, else in the same S3 as the model store."""
    from symposia_shared.catalogue import S3Source
    from symposia_shared.settings import S3Settings, load
    from symposia_shared.store import Store

    settings = load(dir)
    given = settings.source or (S3Settings() if profile or endpoint_url else settings.s3)
    chosen = {key: value for key, value in (("profile", profile), ("endpoint_url", endpoint_url)) if value is not None}
    return Store(given.model_copy(update={**chosen, "bucket": S3Source.parse({"uri": uri}).bucket}))


def _register(file: Path, json: bool, dir: Path | None) -> None:
    from symposia_shared.errors import BadInput
    from symposia_shared.settings import load
    from symposia_worker.models.registering import register

    read = register(opened(dir)[1].index, file, allow_non_commercial=load(dir).allow_non_commercial)
    for why in read.refused.values():
        print(why, file=sys.stderr)
    if not read.entries:
        raise BadInput(f"{file} has no entry that can be loaded here; {len(read.refused)} are refused.", field="entries", value=str(file))
    _answer(json, {"registered": [e.id for e in read.entries], "refused": dict(read.refused)},
            f"{len(read.entries):,} checkpoints are registered, {len(read.refused):,} are refused.")


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
