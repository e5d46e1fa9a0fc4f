"""``symposia run-batch``: a file of OpenAI batch lines through one engine process. No broker, no S3."""

from __future__ import annotations

import json as jsons
import os
import signal
import sys
from enum import StrEnum
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from symposia_shared.errors import BadInput, SymposiaError

if TYPE_CHECKING:
    from symposia_worker.batchrun.run import Tally
    from symposia_worker.engines.protocol import Loaded
    from symposia_worker.models.local import LocalCheckpoint

#: seconds of silence after which the engine process is taken to hang: nobody waits for a single answer here, and one step over a full
#: batch of long prompts took more than a minute on a machine with six busy processes a core
HANG_S = 600.0
#: what a shell sees of a command that Ctrl-C has ended
INTERRUPTED = 130


class EngineName(StrEnum):
    """The engines, as the command line lists them."""

    torch = "torch"
    openvino = "openvino"
    openai = "openai"


class ModeName(StrEnum):
    """The modes, as the command line lists them."""

    exact = "exact"
    fast = "fast"


def command(
    input: Annotated[Path, typer.Option("-i", "--input", help="OpenAI batch lines: chat completions, completions, embeddings.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The answers, in the batch's output form and the input's order.")],
    model: Annotated[str, typer.Option("--model", "-m", help="A checkpoint's id or folder. It answers every line, whatever its 'model' says.")],
    engine: Annotated[EngineName, typer.Option(help="What runs it.")] = EngineName.torch,
    mode: Annotated[ModeName, typer.Option(help="exact: torch's float32 tokens. fast: 8-bit weights.")] = ModeName.exact,
    device: Annotated[str, typer.Option(help="cpu, cuda:0, or openai:URL for another server.")] = "cpu",
    max_tokens: Annotated[int | None, typer.Option(min=1, help="No answer gets more new tokens than this.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0.0, help="For lines that name none; OpenAI's own default is 1. 0 is greedy.")] = None,
    window: Annotated[int, typer.Option(min=1, max=4096, help="Requests the engine has at once.")] = 128,
    threads: Annotated[int, typer.Option(min=0, help="Cores of the engine process; 0: all.")] = 0,
    memory: Annotated[int, typer.Option(min=0, help="Bytes of memory it may fill; 0: three quarters of the machine's.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Begin again. Without it a run that was ended is gone on with.")] = False,
    accept_licence: Annotated[bool, typer.Option("--accept-licence", help="You have read the checkpoint's licence and accept it.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON on standard output, and no progress.")] = False,
    dir: Annotated[Path | None, typer.Option("--dir", help="The stack's folder, for its model cache; default: SYMPOSIA_DIR or ~/.symposia.")] = None,
) -> None:
    """Answer a file of requests with one model on this machine, without broker or S3.

    A line that is wrong is answered by its error and disturbs no other. Ended at any moment, the same command goes on after the last
    whole line of the output. Exit codes: 0 all lines have their answer or error, 2 bad input, 3 unavailable, 4 no line could be answered,
    130 interrupted.
    """
    from symposia_worker.models.cache import cache_folder
    from symposia_worker.models.local import LocalCheckpoint, local_checkpoint

    if engine is EngineName.torch and mode is ModeName.fast:
        raise BadInput("the engine torch has the mode exact only.", field="mode", value="fast", remedy="Use --engine openvino, or --mode exact.")
    if (engine is EngineName.openai) != device.startswith("openai:"):
        raise BadInput(f"the engine {engine.value} does not go with the device {device}.", field="device", value=device,
                       remedy="Name an endpoint by both: --engine openai --device openai:http://HOST:PORT/v1.")
    if engine is EngineName.openai:
        found = LocalCheckpoint(model, None)
    else:
        stack = Path(dir or os.environ.get("SYMPOSIA_DIR") or "~/.symposia").expanduser()
        found = local_checkpoint(model, cache=cache_folder(stack), accept_licence=accept_licence)
    same = {"model": found.fingerprint, "engine": engine.value, "mode": mode.value, "max_tokens": max_tokens, "temperature": temperature,
            "device": device if engine is EngineName.openai else None}
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a stop from outside leaves the file as Ctrl-C does
    try:
        tally, loaded = _run(found, input, output, options=jsons.dumps(same, sort_keys=True), engine=engine.value, mode=mode.value, device=device,
                             threads=threads or os.cpu_count() or 1, memory=memory, overwrite=overwrite, quiet=json,
                             orders={"max_tokens": max_tokens, "temperature": temperature, "window": window})
    except KeyboardInterrupt:
        print("Interrupted before the first request was asked.", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    _summarise(tally, loaded, found.name, output, json=json)


def _run(found: LocalCheckpoint, source: Path, target: Path, *, options: str, engine: str, mode: Any, device: str, threads: int, memory: int,
         overwrite: bool, quiet: bool, orders: dict[str, Any]) -> tuple[Tally, Loaded | None]:
    from symposia_worker.batchrun.files import Kept, Output, count_lines, read_lines
    from symposia_worker.batchrun.progress import shown
    from symposia_worker.batchrun.run import BatchRun, Orders, Tally
    from symposia_worker.engines.client import EngineProcess

    total = count_lines(source)
    if target.exists() and target.samefile(source):
        raise BadInput(f"{target} is the input, too.", field="output", value=str(target), remedy="Name another file for the answers.")
    with Output(target, overwrite=overwrite) as output:
        lines = read_lines(source, options=options)
        kept: Kept = output.resume(lines)
        first = next(lines, None)
        if first is None:
            return Tally(lines=total, kept=kept.lines, kept_failed=kept.failed), None
        rest = chain([first], lines)
        runs: list[BatchRun] = []
        process = EngineProcess(device, memory or _three_quarters(), threads=threads, hang_after_s=HANG_S,
                                on_death=lambda ids: runs[0].died(ids) if runs else None)
        try:
            process.start()
            loaded = process.load(found.name, None if found.folder is None else str(found.folder), engine=engine, mode=mode)
            with shown(quiet=quiet) as told:
                run = BatchRun(Orders(model=found.name, capabilities=loaded.capabilities, **orders), rest, output, kept, total=total, told=told)
                runs.append(run)
                return _interruptible(run, process, target), loaded
        finally:
            process.stop()


def _interruptible(run: Any, process: Any, target: Path) -> Tally:
    from symposia_worker.batchrun.progress import line_of

    try:
        done: Tally = run.run(process)
        return done
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # what follows takes a moment; a second Ctrl-C must not tear it
        print(f"Interrupted: {line_of(run.tally)}. {target} is whole; run the same command to go on.", file=sys.stderr, flush=True)
        raise typer.Exit(INTERRUPTED) from None


def _summarise(tally: Tally, loaded: Loaded | None, model: str, output: Path, *, json: bool) -> None:
    seconds = tally.seconds if loaded is not None else 0.0
    facts = {
        "model": model, "lines": tally.lines, "kept": tally.kept, "kept_failed": tally.kept_failed,
        "answered": tally.written - tally.failed, "failed": tally.failed,
        "prompt_tokens": tally.prompt_tokens, "completion_tokens": tally.completion_tokens, "seconds": round(seconds, 3),
        "tokens_per_s": round(tally.completion_tokens / seconds, 2) if seconds else 0.0, "load_seconds": loaded.seconds if loaded else 0.0,
        "engine_restarts": tally.engine_restarts, "asked_again": tally.asked_again, "output": str(output),
    }
    if json:
        print(jsons.dumps(facts))
    else:
        kept = f", {tally.kept:,} were there before" if tally.kept else ""
        again = f", {tally.engine_restarts} engine restarts ({tally.asked_again} requests asked again)" if tally.engine_restarts else ""
        print(f"{tally.written - tally.failed:,} requests answered, {tally.failed:,} failed{kept}: {tally.prompt_tokens:,} + "
              f"{tally.completion_tokens:,} tokens in {seconds:.1f} s, {facts['tokens_per_s']:,} tok/s{again}. {output}", file=sys.stderr)
    if tally.written and tally.failed == tally.written and not tally.kept:
        raise typer.Exit(SymposiaError.exit_code)


def _three_quarters() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * 3 // 4


if __name__ == "__main__":
    from symposia_worker.commands import run_as_program

    run_as_program(command)
