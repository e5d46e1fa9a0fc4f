"""``symposia run-batch``: a file of OpenAI batch lines through one engine process. No broker, no S3."""

from __future__ import annotations

import json as jsons
import os
import signal
import sys
from contextlib import nullcontext
from enum import StrEnum
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from symposia_shared.errors import BadInput, SymposiaError

if TYPE_CHECKING:
    from symposia_worker.batchrun.run import Tally
    from symposia_worker.batchrun.seats import BatchSeat
    from symposia_worker.engines.protocol import Loaded

#: requests an engine on this machine has at once, and an endpoint, which others may use, too
WINDOW, ENDPOINT_WINDOW = 128, 32
#: what a shell sees of a command that Ctrl-C has ended
INTERRUPTED = 130


class EngineName(StrEnum):
    """The engines, as the command line lists them."""

    auto = "auto"
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
    model: Annotated[str, typer.Option("--model", "-m", help="A checkpoint's id or folder; of an endpoint ID or ID=THEIR_ID. It answers every "
                                       "line, whatever its 'model' says.")],
    engine: Annotated[EngineName, typer.Option(help="auto: on a CPU openvino where the checkpoint's form can be had, else torch; openai for an "
                                               "endpoint.")] = EngineName.auto,
    mode: Annotated[ModeName, typer.Option(help="exact: torch's float32 tokens. fast: 8-bit weights, by openvino; bfloat16 on a GPU.")] = ModeName.exact,
    device: Annotated[str, typer.Option(help="cpu, cuda:0, or openai:http://HOST:PORT/v1 for another server.")] = "cpu",
    api_key_env: Annotated[str, typer.Option(help="The variable that holds an endpoint's key; default: SYMPOSIA_OPENAI_API_KEY, if it is set.")] = "",
    max_tokens: Annotated[int | None, typer.Option(min=1, help="No answer gets more new tokens than this.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0.0, help="For lines that name none; OpenAI's own default is 1. 0 is greedy.")] = None,
    window: Annotated[int, typer.Option(min=0, max=4096, help="Requests the engine has at once; 0: 128, at an endpoint 32.")] = 0,
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
    window = window or (ENDPOINT_WINDOW if device.startswith("openai:") else WINDOW)
    orders = {"max_tokens": max_tokens, "temperature": temperature, "window": window}
    threads = threads or os.cpu_count() or 1
    total = _lines_of(input, output)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a stop from outside leaves the file as Ctrl-C does
    try:
        seat = _seat(model, engine, mode, device=device, api_key_env=api_key_env, window=window, threads=threads, dir=dir,
                     accept_licence=accept_licence, quiet=json)
        tally, loaded = _run(seat, input, output, total, options=_options(seat, orders), threads=threads, memory=memory, overwrite=overwrite,
                             quiet=json, orders=orders)
    except KeyboardInterrupt:
        print("Interrupted before the first request was asked.", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    _summarise(tally, loaded, seat, output, json=json)


def _lines_of(source: Path, target: Path) -> int:
    """How many lines there are to answer. Raises BadInput for files that cannot be it, before anything is fetched or made."""
    from symposia_worker.batchrun.files import count_lines

    total = count_lines(source)
    if target.exists() and target.samefile(source):
        raise BadInput(f"{target} is the input, too.", field="output", value=str(target), remedy="Name another file for the answers.")
    return total


def _seat(model: str, engine: EngineName, mode: ModeName, *, device: str, api_key_env: str, window: int, threads: int, dir: Path | None,
          accept_licence: bool, quiet: bool) -> BatchSeat:
    """What answers. Raises BadInput where engine, mode and device do not go together, and what fetching and exporting raise."""
    from symposia_worker.batchrun.seats import local_seat, remote_seat
    from symposia_worker.engines.openai.endpoint import is_endpoint, key_in
    from symposia_worker.models.cache import cache_folder
    from symposia_worker.models.local import local_checkpoint
    from symposia_worker.models.progress import shown
    from symposia_worker.models.store import silent

    remote = is_endpoint(device)
    if (remote and engine not in (EngineName.auto, EngineName.openai)) or (engine is EngineName.openai and not remote):
        raise BadInput(f"the engine {engine.value} does not go with the device {device}.", field="device", value=device,
                       remedy="Name an endpoint by both: --engine openai --device openai:http://HOST:PORT/v1.")
    if remote:
        if mode is ModeName.fast:
            raise BadInput("the mode of another server is its own.", field="mode", value=mode.value, remedy="Leave --mode out.")
        return remote_seat(model, device=device, key=key_in(os.environ, api_key_env or None), max_concurrency=window)
    stack = Path(dir or os.environ.get("SYMPOSIA_DIR") or "~/.symposia").expanduser()
    with shown() if not quiet else nullcontext(silent) as progress:
        found = local_checkpoint(model, cache=cache_folder(stack), accept_licence=accept_licence, progress=progress)
        wish: Any = engine.value
        return local_seat(found, device=device, engine=wish, mode=mode.value, cache=cache_folder(stack), threads=threads, progress=progress,
                          note=lambda why: print(f"{found.name} is {why}", file=sys.stderr, flush=True))


def _options(seat: BatchSeat, orders: dict[str, int | float | None]) -> str:
    """What the answers depend on beside their lines: a run under other options does not go on with them."""
    same = {"model": seat.fingerprint, "engine": seat.engine, "mode": seat.mode, "max_tokens": orders["max_tokens"],
            "temperature": orders["temperature"], "device": seat.device if seat.engine == "openai" else None}
    return jsons.dumps(same, sort_keys=True)


def _run(seat: BatchSeat, source: Path, target: Path, total: int, *, options: str, threads: int, memory: int, overwrite: bool, quiet: bool,
         orders: dict[str, Any]) -> tuple[Tally, Loaded | None]:
    from symposia_worker.batchrun.files import Kept, Output, read_lines
    from symposia_worker.batchrun.progress import shown
    from symposia_worker.batchrun.run import BatchRun, Orders, Tally
    from symposia_worker.engines.client import EngineProcess
    from symposia_worker.stack.devices import memory_of

    with Output(target, overwrite=overwrite) as output:
        lines = read_lines(source, options=options)
        kept: Kept = output.resume(lines)
        first = next(lines, None)
        if first is None:
            output.waiting.end()
            return Tally(lines=total, kept=kept.lines, kept_failed=kept.failed), None
        rest = chain([first], lines)
        runs: list[BatchRun] = []
        process = EngineProcess(seat.device, memory or memory_of(seat.device) or _three_quarters(), threads=threads, environ=seat.environ,
                                on_death=lambda ids: runs[0].died(ids) if runs else None)
        try:
            process.start()
            loaded = process.load(seat.name, None if seat.folder is None else str(seat.folder), dtype=seat.dtype, engine=seat.engine, mode=seat.mode,
                                  base=seat.base)
            with shown(quiet=quiet) as told:
                run = BatchRun(Orders(model=seat.name, capabilities=loaded.capabilities, **orders), rest, output, kept, total=total, told=told)
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


def _summarise(tally: Tally, loaded: Loaded | None, seat: BatchSeat, output: Path, *, json: bool) -> None:
    seconds = tally.seconds if loaded is not None else 0.0
    facts = {
        "model": seat.name, "engine": seat.engine, "mode": seat.mode, "lines": tally.lines, "kept": tally.kept, "kept_failed": tally.kept_failed,
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
              f"{tally.completion_tokens:,} tokens in {seconds:.1f} s, {facts['tokens_per_s']:,} tok/s, {seat.engine} {seat.mode}{again}. {output}",
              file=sys.stderr)
    if tally.written and tally.failed == tally.written and not tally.kept:
        raise typer.Exit(SymposiaError.exit_code)


def _three_quarters() -> int:
    """Of this machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * 3 // 4


if __name__ == "__main__":
    from symposia_worker.commands import run_as_program

    run_as_program(command)
