"""``symposia up``: the whole stack in one folder, in the foreground or detached."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from symposia_shared.errors import BadInput, StackUnavailable, SymposiaError
from symposia_worker.commands import run_as_program
from symposia_worker.engines.protocol import EngineChoice, Mode

if TYPE_CHECKING:
    from symposia_shared.settings import Settings
    from symposia_worker.stack.blueprint import Plan
    from symposia_worker.stack.folder import Folder

#: served where nothing else is asked for, if it is in the model store
USUAL_MODEL = "smollm2-135m"
#: seconds beyond those of the services and the workers that a detached start may take
SPARE_S = 30.0


def command(
    dir: Annotated[Path | None, typer.Option("--dir", help="The stack's folder; default: SYMPOSIA_DIR or ~/.symposia.")] = None,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Return when all is ready; stop it with `symposia down`.")] = False,
    model: Annotated[list[str] | None, typer.Option("--model", help=f"A checkpoint of the model store to serve; may be given again. "
                                                                    f"Default: {USUAL_MODEL}, if it is there.")] = None,
    test_models: Annotated[bool, typer.Option("--test-models", help="Serve the scripted test/* checkpoints, too.")] = False,
    devices: Annotated[str, typer.Option("--devices", help="cpu, or cpu:0=4GB,cpu:1 as shares of one machine, cuda:0,cuda:1, cuda:0+cuda:1 for "
                                                        "one made of two, or openai:http://HOST:PORT/v1 for an endpoint.")] = "cpu",
    concurrency: Annotated[int | None, typer.Option("--concurrency", min=1, max=4096, help="Turns a pool holds at once.")] = None,
    engine: Annotated[EngineChoice, typer.Option("--engine", help="auto: openvino on a CPU where a checkpoint has the form, else torch.")] = "auto",
    mode: Annotated[Mode, typer.Option("--mode", help="exact: torch's float32 tokens. fast: 8-bit weights, where there is that form; bfloat16 "
                                                      "on a GPU.")] = "exact",
    no_flower: Annotated[bool, typer.Option("--no-flower", help="Do without Flower.")] = False,
    no_api: Annotated[bool, typer.Option("--no-api", help="Do without the HTTP API.")] = False,
    start_timeout: Annotated[float, typer.Option("--start-timeout", min=1, help="Seconds the pools may take to be ready.")] = 300.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the facts as JSON once all is ready.")] = False,
) -> None:
    """Start broker, store, coordinator, pools, HTTP API and Flower in one folder, and keep them running."""
    _needs_local()
    from symposia_worker.stack.blueprint import Plan
    from symposia_worker.stack.devices import shares
    from symposia_worker.stack.folder import Folder

    folder = Folder.of(dir)
    asked = tuple(dict.fromkeys(model or ()))
    if not no_api and not _api_installed():
        print("The HTTP API is not installed, so the stack does without; `pip install 'symposia[api]'` adds it.", file=sys.stderr)
    if not no_flower and not _flower_installed():
        print("Flower is not installed, so the stack does without; `pip install 'symposia[monitor]'` adds it.", file=sys.stderr)
    plan = Plan(devices=shares(devices), models=lambda settings: served(settings, asked), test_models=test_models, concurrency=concurrency,
                engine=engine, mode=mode, flower=not no_flower and _flower_installed(),
                api=not no_api and _api_installed(), start_timeout_s=start_timeout)
    if detach:
        flags = [f"--engine={engine}", f"--mode={mode}", f"--devices={devices}", f"--start-timeout={start_timeout}", *(f"--model={m}" for m in asked)]
        flags += ["--test-models"] * test_models + ["--no-flower"] * no_flower + ["--no-api"] * no_api
        flags += [f"--concurrency={concurrency}"] if concurrency else []
        _detached(folder, flags, within_s=start_timeout, as_json=as_json)
    else:
        _foreground(folder, plan, as_json=as_json)


def served(settings: Settings, asked: Sequence[str]) -> tuple[str, ...]:
    """The checkpoints the pools shall serve. Raises UnknownModel for one that is not in the model store."""
    from symposia_shared.store import Store
    from symposia_worker.models.store import ModelStore

    store = ModelStore(Store(settings.s3))
    for name in asked:
        if name.startswith("test/"):
            raise BadInput(f"{name!r} is a scripted checkpoint.", field="--model", value=name,
                           remedy="Serve all of them with --test-models.")
        store.require(name)
    if asked:
        return tuple(asked)
    return (USUAL_MODEL,) if store.manifest(USUAL_MODEL) else ()


def _foreground(folder: Folder, plan: Plan, *, as_json: bool) -> None:
    from symposia_worker.stack.display import Display
    from symposia_worker.stack.supervisor import Supervisor

    with Display(folder, as_json=as_json) as display:
        Supervisor(folder, plan, display).run()
        display.say(f"the stack in {folder.path} has stopped")


def _detached(folder: Folder, flags: Sequence[str], *, within_s: float, as_json: bool) -> None:
    """Start this command again in a session of its own, and wait until it is ready or has failed."""
    from symposia_worker.stack import state
    from symposia_worker.stack.display import addresses
    from symposia_worker.stack.part import rotate
    from symposia_worker.stack.supervisor import SERVICES_S

    folder.prepare()
    log = folder.logs / "up.log"
    rotate(log)
    with open(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as out:
        command_line = [sys.executable, "-m", "symposia_worker.commands.up", f"--dir={folder.path}", *flags]
        written = log.stat().st_size
        child = subprocess.Popen(command_line, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True)
    deadline = time.monotonic() + SERVICES_S + within_s + SPARE_S
    try:
        while not ((stack := state.read(folder)) and stack.pid == child.pid and stack.state == "ready"):
            if child.poll() is not None:
                raise _failed(child.returncode, log, written)
            if time.monotonic() > deadline:
                raise StackUnavailable(f"The stack was not ready within {SERVICES_S + within_s + SPARE_S:.0f} s and is stopped. See {log}.")
            time.sleep(0.1)
    except BaseException:
        if child.poll() is None:
            child.send_signal(signal.SIGTERM)
            child.wait()
        raise
    facts = stack.facts(folder)
    print(json.dumps(facts) if as_json else f"The stack in {folder.path} is ready (pid {child.pid}).\n{addresses(facts)}", flush=True)


def _failed(status: int, log: Path, written: int) -> SymposiaError:
    """The detached command's own error, which is the last line of its log."""
    from symposia_worker.stack.part import last_words

    words = last_words(log, written, most=1500, lines=1)
    if status == BadInput.exit_code:
        return BadInput(words.partition(": ")[2] or words)
    return StackUnavailable(words.partition(": ")[2] or f"`symposia up` ended at once (exit {status}). See {log}.")


def _needs_local() -> None:
    try:
        import psutil  # noqa: F401
    except ImportError:
        raise StackUnavailable("The embedded stack is not installed. Run `pip install 'symposia[local,worker,monitor]'`.") from None


def _api_installed() -> bool:
    from importlib.util import find_spec

    return find_spec("fastapi") is not None and find_spec("uvicorn") is not None


def _flower_installed() -> bool:
    from importlib.util import find_spec

    return find_spec("flower") is not None


if __name__ == "__main__":
    run_as_program(command)
