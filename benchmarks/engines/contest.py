"""The contenders of one run, in the order the tables have them."""

from __future__ import annotations

import importlib.util
import inspect
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.engines.checkpoint import Forms
from benchmarks.engines.contender import Order
from benchmarks.engines.report import BASE

_HERE = "benchmarks.engines.contenders."
#: weights and caches of our engine on a GPU: those of the largest size that is measured, and room for 64 sequences
CUDA_BYTES = 48 << 30


@dataclass(frozen=True, slots=True)
class Field:
    """What may be measured, and by name why the rest may not."""

    orders: tuple[Order, ...]
    missing: dict[str, str]


def torch_orders(folder: Path, *, device: str, dtype: str, slots: int, longest: int) -> list[Order]:
    """Those that run on any device torch knows: transformers' three ways, and our torch engine."""
    memory = () if device == "cpu" else ("--memory", str(CUDA_BYTES))
    told = ("--folder", str(folder), "--device", device, "--dtype", dtype, "--slots", str(slots), "--longest", str(longest))
    return [
        Order(BASE, _HERE + "one_by_one", told),
        Order("static batches", _HERE + "static_batches", told),
        Order("transformers' continuous batching", _HERE + "transformers_batching", told),
        Order("ours, torch", _HERE + "ours", (*told, *memory, "--engine", "torch")),
    ]


def queue_order(folder: Path, stack: Path, *, slots: int, longest: int, flags: str, called: str = "torch", pushed: str = "") -> Order:
    """Ours through the whole queue, on a stack started with ``flags`` of ``symposia up``; ``pushed``: of ``symposia models push``."""
    told = ("--folder", str(folder), "--slots", str(slots), "--longest", str(longest))
    return Order(f"the queue, {called}", _HERE + "queued", (*told, "--stack", str(stack), f"--flags={flags}", f"--pushed={pushed}"))


def field(
    forms: Forms, work: Path, *, slots: int, longest: int, vllm: str | None, queue_flags: Sequence[tuple[str, str]], only: Sequence[str] = (),
    skip: Sequence[str] = (),
) -> Field:
    """Every contender, less those that ``only`` (parts of names) leaves out or ``skip`` names.

    ``queue_flags``: (engine as the tables call it, flags of ``symposia up`` that choose it), one stack each.
    """
    sizes = ("--slots", str(slots), "--longest", str(longest))
    told = ("--folder", str(forms.endless), *sizes)
    base, static, theirs, ours = torch_orders(forms.endless, device="cpu", dtype="float32", slots=slots, longest=longest)
    orders, missing = [base, static, theirs], {}
    for precision in ("F32", "Q8_0"):
        if precision in forms.gguf and importlib.util.find_spec("xllamacpp"):
            orders.append(Order(f"llama.cpp {precision}", _HERE + "llamacpp", ("--folder", str(forms.gguf[precision]), *sizes)))
        else:
            missing[f"llama.cpp {precision}"] = "there is no GGUF of this checkpoint" if precision not in forms.gguf else "xllamacpp is not installed"
    why = _no_vllm(vllm)
    if vllm and not why:
        # its own PYTHONPATH: ours may name packages its environment has in other versions
        orders.append(Order("vLLM", _HERE + "vllm", told, python=vllm, environ={"PYTHONPATH": "", "VLLM_CACHE_ROOT": str(work / "vllm")}))
    else:
        missing["vLLM"] = why or "no --vllm was given"
    orders.append(ours)
    for mode in ("exact", "fast"):
        if mode in forms.openvino:
            form = ("--folder", str(forms.openvino[mode]), *sizes, "--engine", "openvino", "--mode", mode)
            orders.append(Order(f"ours, openvino {mode}", _HERE + "ours", form))
        else:
            missing[f"ours, openvino {mode}"] = forms.refused.get(mode, "there is no such form")
    for called, flags in queue_flags:
        stack = work / f"stack-{called.replace(' ', '-')}"
        orders.append(queue_order(forms.endless, stack, slots=slots, longest=longest, flags=flags, called=called))
    kept = [o for o in orders if (not only or any(part in o.name for part in only)) and not any(part in o.name for part in skip)]
    return Field(tuple(kept), missing)


def usual_queues(forms: Forms) -> list[tuple[str, str]]:
    """A stack for each OpenVINO form, or one on torch where there is none."""
    from symposia_worker.commands import up

    if "engine" not in inspect.signature(up.command).parameters:
        return [("torch", "")]
    return [(f"openvino {mode}", f"--engine openvino --mode {mode}") for mode in forms.openvino] or [("torch", "--engine torch")]


def _no_vllm(python: str | None) -> str | None:
    """Why vLLM cannot be measured, or None."""
    if python is None:
        return None
    try:
        tried = subprocess.run([python, "-c", "import vllm"], capture_output=True, text=True, timeout=300, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{python} cannot be run: {error}"
    return None if tried.returncode == 0 else (tried.stderr.strip().splitlines() or ["it does not import"])[-1][:200]
