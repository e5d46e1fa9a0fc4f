"""What a batch run is served by: a checkpoint on this machine and the engine for it, or another server."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from symposia_shared.errors import BadInput, SymposiaError
from symposia_worker.engines.protocol import Base, Dtype, Mode
from symposia_worker.engines.runtime import weight_files
from symposia_worker.families.adapters import is_adapter, read_adapter
from symposia_worker.families.forms import ALLOWED, ALLOWED_PAIRS, suits
from symposia_worker.families.kinds import named_kind
from symposia_worker.models import forms
from symposia_worker.models.local import LocalCheckpoint, local_checkpoint
from symposia_worker.models.seats import torch_mode
from symposia_worker.models.store import Progress, silent

EngineWish = Literal["auto", "torch", "openvino"]


@dataclass(frozen=True, slots=True)
class BatchSeat:
    """What an engine process is asked to load, and what it needs for it."""

    name: str
    folder: Path | None
    device: str
    engine: str
    mode: Mode
    #: differs where other answers may be expected
    fingerprint: str
    #: what torch computes in
    dtype: Dtype = "float32"
    #: of a LoRA adapter: what it goes on from
    base: Base | None = None
    #: what the engine process finds in its environment; an endpoint's key among it
    environ: Mapping[str, str] = field(default_factory=dict, repr=False)


def local_seat(found: LocalCheckpoint, *, device: str, engine: EngineWish, mode: Mode, cache: Path, threads: int, progress: Progress = silent,
               note: Callable[[str], None] = lambda _: None) -> BatchSeat:
    """Where a checkpoint of this machine is served; its form for OpenVINO is made here, once per machine and content.

    ``auto`` takes openvino on a CPU where a form can be had, else torch, and notes why. On a CPU torch is exact; on a GPU its ``fast`` is bfloat16.
    Raises BadInput where what is asked for cannot be had, Unavailable or Damaged where the export failed.
    """
    had, dtype = torch_mode(mode, device, alone=engine == "torch")
    plain = BatchSeat(found.name, found.folder, device, "torch", had, found.fingerprint, dtype=dtype)
    if found.folder is None:
        return replace(plain, engine="scripted")
    if is_adapter(found.folder):
        return _over_its_base(plain, found.folder, engine=engine, cache=cache, progress=progress)
    if engine == "torch":
        return plain
    try:
        form = _form(found.name, found.folder, device=device, mode=mode, cache=cache, threads=threads, progress=progress)
    except SymposiaError as error:
        if engine == "openvino":
            raise
        if device.startswith("cpu"):
            note(f"served by torch: {error}")
        return plain
    return BatchSeat(found.name, form, device, "openvino", mode, found.fingerprint)


def _over_its_base(plain: BatchSeat, folder: Path, *, engine: EngineWish, cache: Path, progress: Progress) -> BatchSeat:
    """An adapter and its base, by the name the adapter has for it. Raises BadInput, and UnknownModel where that is not on this machine."""
    if engine == "openvino":
        raise BadInput(f"{plain.name} is a LoRA adapter, and the engine openvino serves none.", field="engine", value=engine,
                       remedy="Use --engine torch, or merge it into its base.")
    under = local_checkpoint(read_adapter(folder).base, cache=cache, progress=progress)
    return replace(plain, base=Base(checkpoint=under.name, folder=str(under.folder)), fingerprint=f"{plain.fingerprint}+{under.fingerprint}")


def remote_seat(model: str, *, device: str, key: str | None, max_concurrency: int) -> BatchSeat:
    """A model of an endpoint: ``ID``, or ``ID=THEIR_ID`` where theirs is no name for a checkpoint. Raises BadInput."""
    from symposia_worker.engines.openai.endpoint import Endpoint, asked_models

    ((ours, theirs),) = asked_models((model,)).items()
    renamed = {ours: theirs} if ours != theirs else {}
    endpoint = Endpoint.of_device(device, max_concurrency=max_concurrency, renamed=renamed)
    return BatchSeat(ours, None, endpoint.device, "openai", "exact", LocalCheckpoint(f"{ours}={theirs}", None).fingerprint,
                     environ=endpoint.environ(key))


def _form(name: str, folder: Path, *, device: str, mode: Mode, cache: Path, threads: int, progress: Progress) -> Path:
    """The folder of the form. Raises BadInput where there is none, Unavailable or Damaged where its export failed."""
    why = _why_not(folder, device)
    if why:
        raise BadInput(f"{name} cannot be served by openvino: {why}", field="engine", value="openvino", remedy="Or use --engine torch.")
    if weight_files(folder):
        return folder
    return forms.local(folder, name, mode, cache=cache, threads=threads, progress=progress)


def _why_not(folder: Path, device: str) -> str:
    """Why openvino does not serve the checkpoint in ``folder``; "" where it may."""
    if not device.startswith("cpu"):
        return f"{device} is no CPU."
    if not forms.servable():
        return "openvino_genai is not installed; `pip install 'symposia[openvino]'`."
    if weight_files(folder):  # a form itself, which is served as it is
        return ""
    model_type, architecture = _architecture(folder)
    if not suits(model_type, named_kind(architecture) or ""):
        return (f"it is a {architecture or model_type or 'model of no known kind'}; forms are made of decoders of {', '.join(ALLOWED)} and of "
                f"encoder-decoders of {', '.join(ALLOWED_PAIRS)}.")
    return ""


def _architecture(folder: Path) -> tuple[str, str]:
    """Its ``model_type`` and the class it was saved from, each "" where its configuration has none."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return str(config.get("model_type") or ""), str((config.get("architectures") or [""])[0])
    except (OSError, ValueError, AttributeError, TypeError):
        return "", ""  # the engine that loads it says what is wrong
