"""A checkpoint's forms for OpenVINO: run as ``python -m symposia_worker.families.export FOLDER OUT [--threads N]``.

It is a process of its own, for torch, optimum and nncf are imported here and the weights are held twice. ``OUT/exact`` and ``OUT/fast`` are
written, each complete with configuration and tokenizer. Lines of JSON go to standard output: ``{"progress": …}`` while it works, then
``{"forms": [FormReport, …]}``, or ``{"refused": …, "remedy": …}`` with exit code 2 where no form can be made.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

from symposia_worker.engines.paged import BLOCK_TOKENS, Paged
from symposia_worker.engines.protocol import Mode
from symposia_worker.engines.runtime import MODEL_BIN, MODEL_XML, openvino
from symposia_worker.families.forms import ALLOWED, ALLOWED_PAIRS, MOST_LOSS, FormReport, suits
from symposia_worker.families.kinds import kind_of
from symposia_worker.families.measure import decode_rate, precisions, processor
from symposia_worker.families.probe import Refused, _memory_available

#: Of the float32 weights: torch's, the graph's and the compiled model's own are in memory together.
_MEMORY_FACTOR = 3.0
#: greedy tokens of each prompt in the self-test
_NEW_TOKENS = 24
#: how far below torch's best logit a chosen token may lie: two sums in another order
_TOLERANCE = 1e-3
#: a prompt of the self-test is longer than any local window by so many tokens
_BEYOND = 64
#: tokens of the passage that are read at once
_WINDOW = 512
_KEPT = ("tokenizer", "special_tokens", "added_tokens", "vocab", "merges", "chat_template", "generation_config.json", "license", "licence",
         "notice", "readme")


def tell(progress: str) -> None:
    """One line of progress."""
    print(json.dumps({"progress": progress}), flush=True)


def export(folder: Path, out: Path, *, threads: int) -> list[FormReport]:
    """Make, test and measure both forms. Raises Refused where neither can be made."""
    from transformers import AutoModelForCausalLM

    if _require_room(folder) == "seq2seq":
        from symposia_worker.families.export_pair import export_pair

        return export_pair(folder, out, threads=threads)
    source = Source(folder, AutoModelForCausalLM, threads=threads)
    context, vocabulary = _context(source.network.config), source.vocabulary
    reference = _torch_perplexity(source.network, source.passage, vocabulary, context)
    prompts = prompts_of(source.passage, source.network.config, context)
    write_forms(source.network, folder, out, task="text-generation-with-past", models=(MODEL_XML,), vocabulary=vocabulary)
    tested = Tested(out, passage=source.passage, prompts=prompts, context=context, vocabulary=vocabulary, reference=reference, threads=threads)
    return [tested.exact(source.network), tested.fast()]


class Source:
    """A checkpoint in float32, loaded by a class of transformers', and the fixed passage as its tokens."""

    def __init__(self, folder: Path, auto: Any, *, threads: int) -> None:
        import torch
        from transformers import AutoTokenizer

        torch.set_num_threads(threads)
        openvino()
        tell("loading it in float32")
        self.network = auto.from_pretrained(folder, local_files_only=True, trust_remote_code=False, use_safetensors=True, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        self.vocabulary = min(max(self.tokenizer.get_vocab().values()) + 1, self.network.get_input_embeddings().weight.shape[0])
        text = files("symposia_worker.families").joinpath("passage.txt").read_text(encoding="utf-8")
        self.passage = [i for i in self.tokenizer(text)["input_ids"] if i < self.vocabulary]
        tell("reading the passage with torch")


class Tested:
    """The forms in ``out``, each tested and measured as it will be served."""

    def __init__(self, out: Path, *, passage: list[int], prompts: list[list[int]], context: int, vocabulary: int, reference: float,
                 threads: int) -> None:
        self.out, self.passage, self.prompts, self.context, self.vocabulary = out, passage, prompts, context, vocabulary
        self.reference, self.threads = reference, threads

    def exact(self, network: Any) -> FormReport:
        """Refused unless each greedy token, all prompts in one batch, is torch's."""
        tell("testing the form exact against torch")
        behind = self._behind(network)
        if not behind <= _TOLERANCE:
            return self._refused("exact", f"batched decoding chose a token {behind:.3g} below torch's best logit, where {_TOLERANCE} is rounding.")
        return self._measured("exact")

    def fast(self) -> FormReport:
        """Refused unless its perplexity is within MOST_LOSS of torch float32's."""
        tell("measuring the form fast")
        report = self._measured("fast")
        loss = report.loss
        if loss is None or not loss <= MOST_LOSS:
            shown = "no number" if loss is None else f"{loss:+.2%}"
            return self._refused("fast", f"its perplexity is {report.perplexity} where torch float32 has {report.perplexity_float32} ({shown}), "
                                 f"and {MOST_LOSS:.0%} is the most a form may lose.", report)
        return report

    def _refused(self, mode: Mode, why: str, measured: FormReport | None = None) -> FormReport:
        shutil.rmtree(self.out / mode, ignore_errors=True)
        report = measured or FormReport(mode=mode)
        return report.model_copy(update={"refused": f"{why} The checkpoint is served by torch instead.", "bytes": 0, "tokens_per_s": None})

    def _behind(self, network: Any) -> float:
        """The most by which a token chosen lies below the best of torch's single forward over its prefix."""
        import torch

        longest = max(map(len, self.prompts)) + _NEW_TOKENS
        paged = self._paged("exact", blocks=len(self.prompts) * (longest // BLOCK_TOKENS + 2))
        chosen = greedy(paged, self.prompts, _NEW_TOKENS)
        most = 0.0
        with torch.inference_mode():
            for prompt, new in zip(self.prompts, chosen, strict=True):
                ids = torch.tensor([prompt + new])
                logits = network(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1, : self.vocabulary].float()
                behind = logits.max(dim=-1).values - logits.gather(1, ids[0, len(prompt) :, None]).squeeze(1)
                most = max(most, float(behind.max()))
        return most

    def _measured(self, mode: Mode) -> FormReport:
        paged = self._paged(mode, blocks=2 * (_WINDOW // BLOCK_TOKENS + 2))
        pieces = windows(self.passage, min(_WINDOW, self.context - 1))
        logprobs = [p for piece in pieces for p in paged.prompt_logprobs(piece)]
        del paged
        perplexity = math.exp(-sum(logprobs) / len(logprobs))
        rate, rows = decode_rate(self.out / mode, mode, self.prompts, threads=self.threads)
        activations, cache = precisions(self.out / mode, mode, threads=self.threads)
        size = sum((self.out / mode / name).stat().st_size for name in (MODEL_XML, MODEL_BIN))
        return FormReport(mode=mode, bytes=size, perplexity=number_of(perplexity), perplexity_float32=number_of(self.reference), tokens_per_s=rate,
                          rows=rows, threads=self.threads, processor=processor(), activations=activations, cache=cache)

    def _paged(self, mode: Mode, *, blocks: int) -> Paged:
        return Paged(self.out / mode, mode, blocks=blocks, rows=8, chunk_tokens=128, threads=self.threads)


def greedy(paged: Paged, prompts: list[list[int]], most: int) -> list[list[int]]:
    """``most`` greedy tokens of each prompt, all in one batch."""
    from symposia_shared.prompts import Sampling

    numbers = [paged.add(prompt, Sampling(), max_new=most) for prompt in prompts]
    chosen: dict[int, list[int]] = {number: [] for number in numbers}
    while paged.busy:
        for piece in paged.step():
            chosen[piece.number] += [token for token, _ in piece.tokens]
    return [chosen[number] for number in numbers]


def windows(ids: list[int], most: int) -> list[list[int]]:
    """``ids`` in pieces of at most ``most``, one of a single token left out: of each the first is given."""
    pieces = [ids[at : at + most] for at in range(0, len(ids), most)]
    return [piece for piece in pieces if len(piece) > 1]


def write_forms(network: Any, folder: Path, out: Path, *, task: str, models: tuple[str, ...], vocabulary: int | None = None) -> None:
    """``out/exact`` and ``out/fast``. ``models``: the names Optimum gives; of the first, ids from ``vocabulary`` on are never the best."""
    import nncf
    from optimum.exporters.openvino import export_from_model
    from optimum.intel import OVConfig

    tell("exporting it")
    _lift_limit(network.config.model_type)
    export_from_model(network, out / "exact", task=task, ov_config=OVConfig(dtype="fp32"), stateful=True)
    made = {name for model in models for name in (model, _weights_of(model))}
    for path in (out / "exact").iterdir():
        if path.name not in (*made, "config.json", "generation_config.json"):
            path.unlink()
    for path in folder.iterdir():
        if path.is_file() and path.name.lower().startswith(_KEPT):
            shutil.copy(path, out / "exact" / path.name)
    (out / "fast").mkdir()
    for name in models:
        model = openvino().Core().read_model(out / "exact" / name)
        if vocabulary is not None and _mask_padding(model, vocabulary):
            (out / "masked").mkdir()
            _save(model, out / "masked" / name)
            for file in (name, _weights_of(name)):
                (out / "masked" / file).replace(out / "exact" / file)
            (out / "masked").rmdir()
            model = openvino().Core().read_model(out / "exact" / name)
        tell(f"quantising its weights to 8 bits ({name})")
        _save(nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_ASYM), out / "fast" / name)
    for path in (out / "exact").iterdir():
        if path.name not in made:
            shutil.copy(path, out / "fast" / path.name)


def _weights_of(model: str) -> str:
    return model.removesuffix(".xml") + ".bin"


def _save(model: Any, path: Path) -> None:
    openvino().save_model(model, path, compress_to_fp16=False)


def _mask_padding(model: Any, vocabulary: int) -> bool:
    """Make ids beyond the tokenizer's never the best: GenAI chooses among all rows of the output. Whether there were any."""
    import numpy as np

    result = next(r for r in model.get_results() if "logits" in r.input(0).get_source_output().get_names())
    logits = result.input(0).get_source_output()
    rows = logits.get_partial_shape()[2].get_length()
    if rows <= vocabulary:
        return False
    bias = np.zeros(rows, dtype=np.float32)
    bias[vocabulary:] = -1e9
    ops = openvino().opset13
    masked = ops.add(logits, ops.constant(bias))
    masked.output(0).set_names(logits.get_names())
    logits.set_names(set())
    result.input(0).replace_source_output(masked.output(0))
    model.validate_nodes_and_infer_types()
    return True


def _lift_limit(model_type: str) -> None:
    """optimum-intel 2.1.0 refuses Gemma 3 under transformers 5.5; what it exports then passes the self-test (docs/DECISIONS.md)."""
    if model_type == "gemma3_text":
        from optimum.exporters.openvino import model_configs

        model_configs.Gemma3TextOpenVINOConfig.MAX_TRANSFORMERS_VERSION = "5.5.99"


def prompts_of(passage: list[int], config: Any, context: int) -> list[list[int]]:
    """Prompts of mixed lengths, the longest beyond the model's local window where its context allows."""
    window = max((w for name in ("sliding_window", "window_size", "attention_window") if isinstance(w := getattr(config, name, None), int)),
                 default=0)
    room = max(2, context - _NEW_TOKENS - 1)
    lengths = sorted({min(room, n) for n in (5, 33, 150, max(300, window + _BEYOND))})
    text = passage * (lengths[-1] // len(passage) + 2)
    return [text[7 * n : 7 * n + length] for n, length in enumerate(lengths)]


def _torch_perplexity(network: Any, passage: list[int], vocabulary: int, context: int) -> float:
    import torch

    nats, tokens = 0.0, 0
    with torch.inference_mode():
        for piece in windows(passage, min(_WINDOW, context - 1)):
            ids = torch.tensor([piece])
            logits = network(input_ids=ids, use_cache=False).logits[0, :-1, :vocabulary].float()
            nats += float(torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum"))
            tokens += len(piece) - 1
    return math.exp(nats / tokens)


def _context(config: Any) -> int:
    for name in ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx"):
        if isinstance(length := getattr(config, name, None), int) and length > 0:
            return length
    return _WINDOW


def _require_room(folder: Path) -> str:
    """The kind of checkpoint in ``folder``. Raises Refused where no form is made of it, or memory is short."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    kind = kind_of(config) or ""
    if not suits(config.model_type, kind):
        raise Refused(f"the architecture {config.model_type} is not among those that OpenVINO serves rightly "
                      f"({', '.join((*ALLOWED, *ALLOWED_PAIRS))}).", "It is served by torch.")
    from symposia_worker.models.weights import read_weights

    needed, free = read_weights(folder).parameters * 4 * _MEMORY_FACTOR, _memory_available()
    if needed > free:
        raise Refused(f"its export needs about {needed / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free.",
                      "Free some, or run `symposia models export` on a larger machine.")
    return kind


def number_of(value: float) -> float | None:
    """``value`` to four places; None where it is no number."""
    return round(value, 4) if math.isfinite(value) else None


def main() -> int:
    """The command line: FOLDER OUT [--threads N]."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args()
    try:
        reports = export(given.folder, given.out, threads=given.threads)
    except Refused as refused:
        print(json.dumps({"refused": str(refused), "remedy": refused.remedy}))
        return 2
    print(json.dumps({"forms": [report.model_dump(mode="json") for report in reports]}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
