"""A folder of verified files to a model in memory: generators only, safetensors only, no code of theirs."""

from __future__ import annotations

import ctypes
import gc
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from symposia_shared.errors import BadInput, Damaged
from symposia_worker.engines.protocol import Dtype
from symposia_worker.families import Family, Renderer, family_of

#: rope that changes with the longest sequence of a batch: exact only within the length it was trained with
_LENGTH_DEPENDENT_ROPE = ("dynamic", "longrope")
#: layers whose state is not keys and values by token
_STATEFUL_LAYERS = ("linear_attention", "mamba", "recurrent", "conv", "hybrid")


@dataclass(frozen=True, slots=True)
class Model:
    """A checkpoint in memory with what is needed to ask it."""

    checkpoint: str
    model_type: str
    #: a transformers model for causal language modelling, in inference mode
    network: Any
    renderer: Renderer
    #: tokens of prompt and completion together
    context: int
    #: rows of its embedding: prompt ids are below
    embeddings: int
    bytes: int
    parameters: int


def load_model(checkpoint: str, folder: Path, *, dtype: Dtype, device: str, room_bytes: float) -> Model:
    """Load a checkpoint. Raises BadInput for what cannot be served here, Damaged for files that are wrong."""
    config = _config(checkpoint, folder)
    family = family_of(config.model_type)
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise BadInput(f"{checkpoint} has no *.safetensors file.", field="folder",
                       remedy="Push it again; weights of other forms are converted then.")
    _refuse_unless_generator(checkpoint, config)
    context = _context(checkpoint, config, family)
    needed = sum(path.stat().st_size for path in weights) * _growth(config, dtype)
    if needed > room_bytes:
        raise BadInput(f"{checkpoint} as {dtype} needs {needed / 1e6:.0f} MB, and {device} has {max(room_bytes, 0) / 1e6:.0f} MB left.",
                       field="memory", remedy="Unload another checkpoint, or give the device more memory.")
    tokenizer = _tokenizer(checkpoint, folder)
    network = _network(checkpoint, folder, dtype, device)
    eos = {*_ids(config.eos_token_id), *_ids(getattr(network.generation_config, "eos_token_id", None))}
    storages = {s.data_ptr(): s.nbytes() for s in (t.untyped_storage() for t in (*network.parameters(), *network.buffers()))}
    return Model(
        checkpoint=checkpoint, model_type=config.model_type, network=network, renderer=Renderer(family, tokenizer, eos=sorted(eos)),
        context=context, embeddings=network.get_input_embeddings().weight.shape[0], bytes=sum(storages.values()),
        parameters=network.num_parameters(),
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
        raise BadInput(f"{checkpoint} is of no architecture that transformers knows ({_line(error)}).", field="checkpoint",
                       remedy="Code that comes with a checkpoint is never run; use another checkpoint or a newer transformers.") from None
    return config


def _refuse_unless_generator(checkpoint: str, config: Any) -> None:
    """transformers loads an encoder as a causal model without a word, and it emits noise; so the kind is read from the config."""
    names = list(config.architectures or ())
    remedy = "Choose a checkpoint whose architecture is a ...ForCausalLM."
    if config.is_encoder_decoder:
        raise BadInput(f"{checkpoint} is an encoder-decoder ({config.model_type}), which this engine does not serve yet.",
                       field="checkpoint", remedy=remedy)
    causal = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)
    generates = any(name == causal or name.endswith(("ForCausalLM", "LMHeadModel")) for name in names)
    if causal is None or not generates:
        what = ", ".join(names) or f"model_type {config.model_type!r} with no architecture named"
        raise BadInput(f"{checkpoint} is not a text generator: its config says {what}.", field="checkpoint", remedy=remedy)
    kinds = {k for k in getattr(config, "layer_types", None) or () if any(word in k for word in _STATEFUL_LAYERS)}
    if kinds:
        raise BadInput(f"{checkpoint} has layers this engine cannot batch ({', '.join(sorted(kinds))}).", field="checkpoint", remedy=remedy)


def _context(checkpoint: str, config: Any, family: Family) -> int:
    lengths = [value for name in family.context_fields if isinstance(value := getattr(config, name, None), int) and value > 0]
    if not lengths:
        raise BadInput(f"{checkpoint}'s config names no context length (looked for {', '.join(family.context_fields)}).",
                       field="checkpoint", remedy="Add max_position_embeddings to its config.json.")
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    if isinstance(rope, dict) and rope.get("rope_type", rope.get("type")) in _LENGTH_DEPENDENT_ROPE:
        trained = rope.get("original_max_position_embeddings") or getattr(config, "original_max_position_embeddings", None)
        return min(lengths[0], int(trained)) if trained else lengths[0]
    return lengths[0]


def _growth(config: Any, dtype: Dtype) -> float:
    """How much larger the weights become in memory than on disk."""
    stored = getattr(config, "dtype", None) or torch.float32
    stored = getattr(torch, stored) if isinstance(stored, str) else stored
    wanted: torch.dtype = getattr(torch, dtype)
    return float(wanted.itemsize / stored.itemsize)


def _tokenizer(checkpoint: str, folder: Path) -> Any:
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers raises whatever a tokenizer's files make it trip over
        raise BadInput(f"{checkpoint} has no tokenizer that can be read here ({_line(error)}).", field="checkpoint",
                       remedy="Push it again with its tokenizer.json; tokenizers that are code are never run.") from None


def _network(checkpoint: str, folder: Path, dtype: Dtype, device: str) -> Any:
    try:
        network, report = AutoModelForCausalLM.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, use_safetensors=True, dtype=getattr(torch, dtype),
            low_cpu_mem_usage=True, output_loading_info=True, device_map=None if device.startswith("cpu") else device,
        )
    except SafetensorError as error:
        raise Damaged(f"{checkpoint}'s weights cannot be read ({_line(error)}). Verify and pull it again.") from None
    except (ValueError, OSError, RuntimeError, KeyError) as error:
        if isinstance(error, RuntimeError) and "memory" in str(error).lower():
            raise
        raise Damaged(f"{checkpoint}'s files do not make a model ({_line(error)}). Verify and pull it again.") from None
    absent = sorted(report["missing_keys"])
    if absent:  # transformers would go on with random numbers in their place
        raise Damaged(f"{checkpoint} lacks {len(absent)} of its tensors ({', '.join(absent[:3])} ...). Push a whole checkpoint again.")
    return network.eval().requires_grad_(False)


def _ids(given: Any) -> list[int]:
    return [] if given is None else [given] if isinstance(given, int) else list(given)


def _line(error: BaseException) -> str:
    text = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(".")
    return text if len(text) <= 240 else text[:237] + "..."
