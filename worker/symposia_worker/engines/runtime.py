"""OpenVINO, imported in one place: without its telemetry, and with the settings each mode runs by."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from symposia_worker.engines.protocol import Mode

#: ``exact``: both together, for the cache alone in float32 raises. ``fast``: keys and values in 8 bits too, each token by a scale of its own: the
#: plugin's default is a scale per channel and block of 32 tokens, under which a key depends on what was written to its block with it, and so on
#: where a chunk of a prompt ended, and on what else was in the batch (docs/DECISIONS.md). Activations are left to the processor's plugin,
#: which takes bfloat16 where the processor multiplies in it, else float32.
_PRECISION = {
    "exact": {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"},
    "fast": {"KV_CACHE_PRECISION": "u8", "KEY_CACHE_QUANT_MODE": "BY_TOKEN"},
}

#: Threads are left to the system. The plugin would pin them to the machine's first processors, as many as it has threads, and so would every other
#: engine process of the machine: two pools of one thread each shared one processor (docs/DECISIONS.md).
_FREE = {"ENABLE_CPU_PINNING": False}

MODEL_XML, MODEL_BIN = "openvino_model.xml", "openvino_model.bin"
#: of an encoder-decoder, by Optimum's names
ENCODER_XML, DECODER_XML = "openvino_encoder_model.xml", "openvino_decoder_model.xml"


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The files with the weights of the form in ``folder``; none where it holds no form."""
    for models in ((MODEL_XML,), (ENCODER_XML, DECODER_XML)):
        weights = tuple((folder / name).with_suffix(".bin") for name in models)
        if all((folder / name).is_file() for name in models) and all(path.is_file() for path in weights):
            return weights
    return ()


def is_pair(folder: Path) -> bool:
    """Whether the form in ``folder`` is an encoder-decoder's."""
    return (folder / ENCODER_XML).is_file()


def openvino() -> Any:
    """The package ``openvino``.

    It, nncf and its converter import ``openvino_telemetry`` where it is installed, which reports to Google Analytics unless a file in the
    home folder forbids it. With this entry the import fails, and each of them then does without.
    """
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    return importlib.import_module("openvino")


def genai() -> Any:
    """The package ``openvino_genai``, likewise."""
    openvino()
    return importlib.import_module("openvino_genai")


def properties(mode: Mode, threads: int) -> dict[str, Any]:
    """What a model is compiled with."""
    return {"INFERENCE_NUM_THREADS": threads, **_FREE, **_PRECISION[mode]}


def pair_properties(threads: int) -> dict[str, Any]:
    """What an encoder and its decoder are compiled with, in both modes: what fewer bits of activations and states do to a T5 was not measured."""
    return {"INFERENCE_NUM_THREADS": threads, **_FREE, **_PRECISION["exact"]}


def cache_bytes_per_token(folder: Path, mode: Mode) -> int:
    """Bytes that keys and values of one token take, by the shapes of the model's states (…, heads, tokens, size)."""
    model = openvino().Core().read_model(folder / MODEL_XML)
    total = 0
    for variable in model.get_variables():
        sizes = [d.get_length() for d in variable.info.data_shape if d.is_static]
        heads, size = sizes[-2:]
        # in 8 bits with a float32 scale and zero point, a pair for each head and token
        total += heads * (size * 4 if mode == "exact" else size + 8)
    return total
