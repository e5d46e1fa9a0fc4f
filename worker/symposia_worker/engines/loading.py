"""A folder of verified files to a model in memory, of the class its kind asks for: safetensors only, no code of theirs."""

from __future__ import annotations

import ctypes
import gc
import hashlib
import sys
import weakref
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from symposia_shared.errors import BadInput, Damaged
from symposia_worker.engines import split
from symposia_worker.engines.protocol import Dtype
from symposia_worker.families import Renderer, family_of
from symposia_worker.families.kinds import Kind, context_of, kind_of
from symposia_worker.families.pooling import Pooling, pooling_of

_CLASSES: dict[Kind, Any] = {"generate": AutoModelForCausalLM, "embed": AutoModel, "seq2seq": AutoModelForSeq2SeqLM}
#: what a tokenizer is read from
_TOKENIZER_FILES = ("config.json", "tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "chat_template*", "*.model",
                    "*.tiktoken", "additional_chat_templates/*")
#: those in use, by what they were read from: one of 150,000 tokens takes tens of megabytes, and a dozen checkpoints may have the same
_tokenizers: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()
#: layers whose state is not keys and values by token
_STATEFUL_LAYERS = ("linear_attention", "mamba", "recurrent", "conv", "hybrid")


@dataclass(frozen=True, slots=True)
class Model:
    """A checkpoint in memory with what is needed to ask it."""

    checkpoint: str
    model_type: str
    kind: Kind
    #: a transformers model of the class its kind asks for, in inference mode
    network: Any
    renderer: Renderer
    #: tokens of prompt and completion together; of an encoder's text; of a seq2seq's prompt, and again of its completion
    context: int
    #: rows of its embedding: prompt ids are below
    embeddings: int
    bytes: int
    parameters: int
    #: how an encoder's states become a vector
    pooling: Pooling = field(default_factory=Pooling)


def load_model(checkpoint: str, folder: Path, *, dtype: Dtype, device: str, room_bytes: float) -> Model:
    """Load a checkpoint. Raises BadInput for what cannot be served here, Damaged for files that are wrong."""
    config = _config(checkpoint, folder)
    family = family_of(config.model_type)
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise BadInput(f"{checkpoint} has no *.safetensors file.", field="folder",
                       remedy="Push it again; weights of other forms are converted then.")
    kind = _kind(checkpoint, config)
    needed = sum(path.stat().st_size for path in weights) * _growth(config, dtype)
    if needed > room_bytes and not split.spills(device):
        raise BadInput(f"{checkpoint} as {dtype} needs {needed / 1e6:.0f} MB, and {device} has {max(room_bytes, 0) / 1e6:.0f} MB left.",
                       field="memory", remedy="Unload another checkpoint, give the device more memory, or make it of several (cuda:0+cuda:1, cpu+disk).")
    tokenizer = load_tokenizer(checkpoint, folder)
    context, pooling = _context(checkpoint, config, tokenizer), _pooling(checkpoint, folder, kind)
    network = _network(checkpoint, folder, dtype, device, kind, room_bytes)
    eos = {*_ids(config.eos_token_id), *_ids(getattr(getattr(network, "generation_config", None), "eos_token_id", None))}
    return Model(
        checkpoint=checkpoint, model_type=config.model_type, kind=kind, network=network,
        renderer=Renderer(family, tokenizer, eos=sorted(eos), keeps_end=kind != "generate"),
        context=min(context, pooling.longest or context), embeddings=network.get_input_embeddings().weight.shape[0],
        bytes=split.resident_bytes(network), parameters=network.num_parameters(), pooling=pooling,
    )


def return_memory() -> None:
    """Give freed memory back to the system: glibc keeps what was allocated in small pieces (facts: engine §6)."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if trim is not None:
            trim(0)


def _config(checkpoint: str, folder: Path) -> Any:
    if not (folder / "config.json").is_file():
        raise Damaged(f"{checkpoint} has no config.json in its folder. Pull it again.")
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (ValueError, KeyError, OSError) as error:
        raise BadInput(f"{checkpoint} is of no architecture that transformers knows ({line_of(error)}).", field="checkpoint",
                       remedy="Code that comes with a checkpoint is never run; use another checkpoint or a newer transformers.") from None
    return config


def _kind(checkpoint: str, config: Any) -> Kind:
    """How it is served. Raises BadInput where it is of no kind that is."""
    kind = kind_of(config)
    if kind is None:
        what = ", ".join(config.architectures or ()) or f"model_type {config.model_type!r} with no architecture named"
        raise BadInput(f"{checkpoint} is not a text generator, an encoder or a T5: its config says {what}.", field="checkpoint",
                       remedy="Choose a checkpoint whose architecture is a ...ForCausalLM, an encoder's ...Model or ...ForMaskedLM, or T5.")
    kinds = {k for k in getattr(config, "layer_types", None) or () if any(word in k for word in _STATEFUL_LAYERS)}
    if kinds:
        raise BadInput(f"{checkpoint} has layers this engine cannot batch ({', '.join(sorted(kinds))}).", field="checkpoint",
                       remedy="Choose a checkpoint all of whose layers attend to keys and values.")
    return kind


def _context(checkpoint: str, config: Any, tokenizer: Any) -> int:
    length = context_of(config, tokenizer)
    if length is None:
        raise BadInput(f"neither {checkpoint}'s config nor its tokenizer names a context length.", field="checkpoint",
                       remedy="Add max_position_embeddings to its config.json, or model_max_length to its tokenizer_config.json.")
    return length


def _pooling(checkpoint: str, folder: Path, kind: Kind) -> Pooling:
    if kind != "embed":
        return Pooling()
    try:
        return pooling_of(folder)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"{checkpoint} makes vectors in a way that is not known here: {line_of(error)}.", field="checkpoint",
                       remedy="Choose an encoder that pools by mean, first token, last token or maximum.") from None


def _growth(config: Any, dtype: Dtype) -> float:
    """How much larger the weights become in memory than on disk."""
    stored = getattr(config, "dtype", None) or torch.float32
    stored = getattr(torch, stored) if isinstance(stored, str) else stored
    wanted: torch.dtype = getattr(torch, dtype)
    return float(wanted.itemsize / stored.itemsize)


def load_tokenizer(checkpoint: str, folder: Path) -> Any:
    """A checkpoint's tokenizer, one object for all whose files are the same. Raises BadInput where none can be read without running code."""
    digest = _digest_of_tokenizer(folder)
    found = _tokenizers.get(digest)
    if found is None:
        found = _tokenizers[digest] = _read_tokenizer(checkpoint, folder)
    return found


def _digest_of_tokenizer(folder: Path) -> str:
    """Of what transformers chooses and fills a tokenizer by: its files, and the architecture they lie beside."""
    digest = hashlib.sha256()
    for path in sorted({p for pattern in _TOKENIZER_FILES for p in folder.glob(pattern) if p.is_file()}):
        digest.update(f"{path.name} {path.stat().st_size} ".encode() + path.read_bytes())
    return digest.hexdigest()


def _read_tokenizer(checkpoint: str, folder: Path) -> Any:
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers raises whatever a tokenizer's files make it trip over
        raise BadInput(f"{checkpoint} has no tokenizer that can be read here ({line_of(error)}).", field="checkpoint",
                       remedy="Push it again with its tokenizer.json; tokenizers that are code are never run.") from None


def _network(checkpoint: str, folder: Path, dtype: Dtype, device: str, kind: Kind, room_bytes: float) -> Any:
    where = split.split_over(device, room_bytes) if split.is_split(device) else {"device_map": None if device.startswith("cpu") else device}
    try:
        network, report = _CLASSES[kind].from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, use_safetensors=True, dtype=getattr(torch, dtype),
            low_cpu_mem_usage=True, output_loading_info=True, **where,
        )
    except SafetensorError as error:
        raise Damaged(f"{checkpoint}'s weights cannot be read ({line_of(error)}). Verify and pull it again.") from None
    except (ValueError, OSError, RuntimeError, KeyError) as error:
        if isinstance(error, RuntimeError) and "memory" in str(error).lower():
            raise
        raise Damaged(f"{checkpoint}'s files do not make a model ({line_of(error)}). Verify and pull it again.") from None
    # a pooler is read by classifiers only; an encoder saved as ...ForMaskedLM has none
    absent = sorted(k for k in report["missing_keys"] if kind != "embed" or not k.startswith("pooler."))
    if absent:  # transformers would go on with random numbers in their place
        raise Damaged(f"{checkpoint} lacks {len(absent)} of its tensors ({', '.join(absent[:3])} ...). Push a whole checkpoint again.")
    if split.is_split(device):
        split.require_begun(checkpoint, network, device, room_bytes)
    return network.eval().requires_grad_(False)


def _ids(given: Any) -> list[int]:
    return [] if given is None else [given] if isinstance(given, int) else list(given)


def line_of(error: BaseException) -> str:
    """An error with its type, in one line that a message has room for."""
    return _cut(f"{type(error).__name__}: {error}", 240)


def message_of(error: BaseException) -> str:
    """What an error says, in one line that a message has room for."""
    return _cut(str(error), 300)


def _cut(text: str, most: int) -> str:
    text = " ".join(text.split()).rstrip(".")
    return text if len(text) <= most else text[:most - 3] + "..."
