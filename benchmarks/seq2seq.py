"""A T5 of real width on our engines, torch and openvino, beside Optimum's own serving of its export: ``python -m benchmarks.seq2seq``.

Random weights, greedy, in interleaved rounds. Rates are per second of processor time, so that other work on the machine does not count.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# read when torch is loaded: threads that spin while they wait would be counted as work
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))  # the maker of small checkpoints is the tests'

from benchmarks.engines import machine  # noqa: E402
from benchmarks.engines.report import table  # noqa: E402
from catalogue_tiny import EIGHTEEN, plain  # noqa: E402
from symposia_shared.prompts import Sampling, user  # noqa: E402
from symposia_worker.engines.openvino import OpenVINOEngine  # noqa: E402
from symposia_worker.engines.protocol import Done, Generate, Load, Mode  # noqa: E402
from symposia_worker.engines.torch import TorchEngine  # noqa: E402
from symposia_worker.families import export as exporting  # noqa: E402
from symposia_worker.families.forms import MOST_LOSS  # noqa: E402

MODES: tuple[Mode, ...] = ("exact", "fast")
_WORDS = "the quick brown fox jumps over a lazy dog and returns what it was asked for def add ( a , b ) : "


def made(folder: Path, *, width: int, layers: int) -> Path:
    """The catalogue's T5 in miniature, with its tokenizer, at another size and without an end token that it would say."""
    import torch
    from transformers import AutoConfig, AutoModelForSeq2SeqLM

    small = plain(next(c for c in EIGHTEEN if c.slug == "codet5-large-ntp-py"), folder)[0]
    config = AutoConfig.from_pretrained(small)
    config.update({"d_model": width, "d_ff": 4 * width, "num_layers": layers, "num_decoder_layers": layers, "num_heads": width // 64, "d_kv": 64})
    torch.manual_seed(0)
    AutoModelForSeq2SeqLM.from_config(config).save_pretrained(small)
    return small


def ours(folder: Path, engine: TorchEngine | OpenVINOEngine, mode: Mode = "exact") -> Callable[[Sequence[str], int], int]:
    """An engine of ours; a run gives the tokens it made."""
    engine.load(Load(checkpoint="t5", folder=str(folder), mode=mode))

    def run(prompts: Sequence[str], new: int) -> int:
        for n, prompt in enumerate(prompts):
            engine.admit(Generate(id=str(n), checkpoint="t5", messages=user(prompt), sampling=Sampling(max_tokens=new)))
        tokens = 0
        while engine.busy:
            tokens += sum(e.completion.usage.completion_tokens for e in engine.step() if isinstance(e, Done))
        return tokens

    return run


def forms(folder: Path, out: Path) -> None:
    """Our exporter's. Weights are random, so its rule of perplexity is lifted."""
    try:
        vars(exporting)["MOST_LOSS"] = float("inf")
        with contextlib.redirect_stdout(sys.stderr):  # its progress
            reports = exporting.export(folder, out, threads=os.cpu_count() or 1)
    finally:
        vars(exporting)["MOST_LOSS"] = MOST_LOSS
    for report in reports:
        print(f"{report.mode}: {report.bytes / 1e6:.0f} MB, perplexity {report.perplexity} (torch {report.perplexity_float32}), {report.refused or 'made'}")


def optimum(folder: Path, *, into: Path, eight_bits: bool) -> Callable[[Sequence[str], int], int]:
    """Optimum's own export and its ``generate`` over a whole batch."""
    from optimum.intel import OVModelForSeq2SeqLM
    from transformers import AutoTokenizer

    model: Any = OVModelForSeq2SeqLM.from_pretrained(folder, export=True, load_in_8bit=eight_bits, ov_config={"INFERENCE_PRECISION_HINT": "f32"})
    model.save_pretrained(into)
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def run(prompts: Sequence[str], new: int) -> int:
        batch = tokenizer(list(prompts), return_tensors="pt", padding=True)
        out = model.generate(**batch, min_new_tokens=new, max_new_tokens=new, do_sample=False, num_beams=1)
        return int(out[:, 1:].numel())  # of random weights any token may be chosen, the padding's too

    return run


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--texts", type=int, nargs="+", default=[1, 8, 16])
    parser.add_argument("--words", type=int, default=24)
    parser.add_argument("--new", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    import torch

    torch.set_num_threads(os.cpu_count() or 1)
    torch.set_grad_enabled(False)
    words = _WORDS.split()
    with tempfile.TemporaryDirectory() as scratch:
        folder, rows = made(Path(scratch) / "t5", width=given.width, layers=given.layers), []
        forms(folder, Path(scratch) / "forms")
        runs = {"ours, torch": ours(folder, TorchEngine("cpu", 8 << 30)),
                **{f"ours, openvino {mode}": ours(Path(scratch) / "forms" / mode, OpenVINOEngine("cpu", 8 << 30), mode) for mode in MODES},
                **{f"OpenVINO by Optimum, {'8-bit weights' if eight_bits else 'float32'}":
                   optimum(folder, into=Path(scratch) / f"optimum-{eight_bits}", eight_bits=eight_bits) for eight_bits in (False, True)}}
        for number in given.texts:
            prompts = [" ".join(words[(n + k) % len(words)] for k in range(given.words)) for n in range(number)]
            rates: dict[str, list[float]] = {name: [] for name in runs}
            for turn in range(given.rounds + 1):
                for name, run in runs.items():
                    began = time.process_time()
                    tokens = run(prompts, given.new)
                    if turn:  # the first is for warming up
                        rates[name].append(tokens / (time.process_time() - began))
            base = statistics.median(rates["ours, torch"])
            rows += [[str(number), name, f"{statistics.median(found):.0f}", f"{min(found):.0f} to {max(found):.0f}", f"{statistics.median(found) / base:.2f}"]
                     for name, found in rates.items()]
        print("; ".join(f"{k}: {v}" for k, v in machine.described().items()))
        print(f"T5 of width {given.width}, {given.layers} + {given.layers} layers, random weights: {given.words} words, {given.new} new tokens, "
              f"{given.rounds} rounds, medians\n")
        print(table(["texts at once", "contender", "tokens per CPU s", "min to max", "× ours, torch"], rows))


if __name__ == "__main__":
    main()
