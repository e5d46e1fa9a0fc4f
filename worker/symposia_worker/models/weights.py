"""The files of a checkpoint on disk: which are kept, and what their safetensors headers say."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from symposia_shared.errors import BadInput, Damaged
from symposia_worker.models.manifest import within

#: what a transformers checkpoint needs, and what explains it; code, pickles and other frameworks' weights are left behind
_KEPT_SUFFIXES = {".safetensors", ".json", ".txt", ".model", ".jinja", ".md", ".html"}
_KEPT_NAMES = ("license", "licence", "notice")
_PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"}
#: where sentence-transformers keeps how an encoder's states become a vector: the one subfolder that is kept
_POOLING = "*_Pooling/config.json"

#: names of the safetensors format for what transformers calls the dtype
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I8": "int8", "U8": "uint8",
           "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}
_BITS = {"F64": 64, "I64": 64, "U64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16, "I16": 16, "U16": 16}

#: safetensors' own limit
_MAX_HEADER_BYTES = 100_000_000


@dataclass(frozen=True, slots=True)
class Weights:
    """What the headers of a checkpoint's safetensors files say."""

    parameters: int
    #: the one most parameters have
    dtype: str
    #: of the files
    size: int


#: an exported form's, which has no safetensors: a decoder's, and an encoder-decoder's
_FORMS = (("openvino_model.bin", "openvino_model.xml"),
          ("openvino_decoder_model.bin", "openvino_decoder_model.xml", "openvino_encoder_model.bin", "openvino_encoder_model.xml"))


def form_files(folder: Path) -> list[str]:
    """Paths under ``folder`` of the files that make an exported form, in order. Raises BadInput."""
    models = {name for form in _FORMS for name in form}
    kept = sorted(p.name for p in folder.iterdir() if p.is_file() and (p.name in models or _is_kept(p.name)))
    if "config.json" not in kept or set(kept) & models not in map(set, _FORMS) or any(name.endswith(".safetensors") for name in kept):
        raise BadInput(f"{folder} is no exported form.", field="folder", value=str(folder), remedy="Export the checkpoint again.")
    for path in kept:
        within(folder, path)
    return kept


def adapter_files(folder: Path) -> list[str]:
    """Paths under ``folder`` of the files that make a LoRA adapter, in order: its two, its tokenizer's, and what explains it."""
    kept = sorted(p.name for p in folder.iterdir() if p.is_file() and not p.name.startswith(".") and _is_kept(p.name))
    for path in kept:
        within(folder, path)
    return [path for path in kept if not path.endswith(".safetensors") or path == "adapter_model.safetensors"]


def checkpoint_files(folder: Path) -> list[str]:
    """Paths under ``folder`` of the files that make the checkpoint, in order. Raises BadInput.

    Hidden files and subfolders, in which publishers keep other frameworks' forms, are passed over, but for a pooling's. A link that leads out of
    the folder, or a name that S3 would not keep, is refused.
    """
    if not folder.is_dir():
        raise BadInput(f"{folder} is not a folder.", field="folder", value=str(folder), remedy="Name a folder in transformers' form.")
    if not (folder / "config.json").is_file():
        raise BadInput(f"{folder} has no config.json.", field="folder", value=str(folder),
                       remedy="Name a folder written by model.save_pretrained and tokenizer.save_pretrained.")
    seen = [p.name for p in folder.iterdir() if p.is_file() and not p.name.startswith(".")]
    kept = sorted(p for p in seen if _is_kept(p))
    if not any(p.endswith(".safetensors") for p in kept):
        pickles = sorted(p for p in seen if Path(p).suffix in _PICKLES)
        if pickles:
            raise BadInput(f"{folder} has its weights as a pickle ({pickles[0]}), which can run code when it is read.", field="folder",
                           value=str(folder), remedy="Where you trust it, write safetensors from it with model.save_pretrained(FOLDER).")
        raise BadInput(f"{folder} holds no .safetensors file.", field="folder", value=str(folder),
                       remedy="Name a folder written by model.save_pretrained and tokenizer.save_pretrained.")
    kept += sorted(p.relative_to(folder).as_posix() for p in folder.glob(_POOLING))
    for path in kept:
        within(folder, path)
    return sorted(kept)


def _is_kept(path: str) -> bool:
    name = Path(path).name.lower()
    return Path(name).suffix in _KEPT_SUFFIXES or name.split(".")[0] in _KEPT_NAMES


def read_weights(folder: Path) -> Weights:
    """Parameters and dtype by the headers of all safetensors files of ``folder``; nothing is loaded. Raises Damaged."""
    counts: Counter[str] = Counter()
    size = 0
    for path in (p for p in checkpoint_files(folder) if p.endswith(".safetensors")):
        counts.update(header_counts(folder / path))
        size += (folder / path).stat().st_size
    if not counts:
        raise Damaged(f"the safetensors files of {folder} hold no tensor. Fetch or save the checkpoint again.")
    return Weights(parameters=counts.total(), dtype=_DTYPES.get(counts.most_common(1)[0][0], counts.most_common(1)[0][0]), size=size)


def header_counts(path: Path) -> Counter[str]:
    """Elements per dtype in one safetensors file, after checking that its tensors fill it exactly. Raises Damaged."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(_MAX_HEADER_BYTES, size - 8):
            raise Damaged(f"{path} is not a whole safetensors file: a header of {length} bytes in a file of {size}. Fetch it again.")
        text = file.read(length)
    try:
        tensors = {k: v for k, v in json.loads(text).items() if k != "__metadata__"}
        counts: Counter[str] = Counter()
        end = 0
        for tensor in sorted(tensors.values(), key=lambda t: t["data_offsets"]):
            first, last = tensor["data_offsets"]
            elements = math.prod(tensor["shape"])
            if first != end or last - first != elements * _BITS.get(tensor["dtype"], 8) // 8:
                raise ValueError("its tensors do not fit one another")
            counts[tensor["dtype"]] += elements
            end = last
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(f"{path} is not a sound safetensors file: {error}. Fetch it again.") from None
    if size != 8 + length + end:
        raise Damaged(f"{path} is not a whole safetensors file: it should have {8 + length + end} bytes, it has {size}. Fetch it again.")
    return counts
