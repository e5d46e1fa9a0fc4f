"""The torch engine on a CUDA device beside one-by-one ``generate`` and transformers' own continuous batching: ``python -m benchmarks.gpu``.

Architectures of real size with random weights: their speed is that of trained ones. The device's use is read from NVML while a contender
answers. ``--tiny --device cpu`` runs the same program on small models, to see that it works where there is no GPU.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
import threading
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))  # the maker of tiny tokenizers is the tests'

from benchmarks.engines import machine, workload  # noqa: E402
from benchmarks.engines.checkpoint import endless  # noqa: E402
from benchmarks.engines.contender import Contender, Failed, Order  # noqa: E402
from benchmarks.engines.contest import CUDA_BYTES, queue_order, torch_orders  # noqa: E402
from benchmarks.engines.figures import Run, Spread, percentile, run_of  # noqa: E402
from benchmarks.engines.report import BASE, table  # noqa: E402
from benchmarks.engines.wire import Request  # noqa: E402
from tiny import tiny_tokenizer  # noqa: E402

#: (config class, fields) at the sizes of Qwen/Qwen2-1.5B-Instruct and microsoft/Phi-3-mini-4k-instruct, from their config.json
SIZES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2-1.5b": ("Qwen2Config", {
        "vocab_size": 151_936, "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12,
        "num_key_value_heads": 2, "max_position_embeddings": 32_768, "tie_word_embeddings": True}),
    "phi-3-mini": ("Phi3Config", {
        "vocab_size": 32_064, "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 32, "max_position_embeddings": 4096, "sliding_window": 2047, "pad_token_id": 0}),
}
_TINY = {"vocab_size": 512, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
_LOOK_EVERY_S = 0.1


def made(folder: Path, size: str, *, dtype: str, tiny: bool = False) -> tuple[Path, Any]:
    """A checkpoint of random weights without an end token, and a tokenizer as large as its vocabulary (with a chat template).

    The tokenizer is the one that is read from the folder: for some architectures transformers splits words its own way, whatever was saved.
    """
    import torch
    import transformers

    name, fields = SIZES[size]
    config = getattr(transformers, name)(**{**fields, **(_TINY if tiny else {}), "bos_token_id": 0, "eos_token_id": 0})
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    tokenizer = _filled(tiny_tokenizer(chat=True), config.vocab_size)
    model.save_pretrained(folder / size)
    tokenizer.save_pretrained(folder / size)
    del model
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return endless(folder / size, folder / f"{size}-endless"), transformers.AutoTokenizer.from_pretrained(folder / size)


def _filled(tokenizer: Any, vocabulary: int) -> Any:
    """The tokenizer with entries that no text has, so that every id of the model may be chosen."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    raw = json.loads(tokenizer.backend_tokenizer.to_str())
    taken = raw["model"]["vocab"]
    taken |= {f"<unused {n}>": n for n in range(max(taken.values()) + 1, vocabulary)}
    fast = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(raw)), eos_token=tokenizer.eos_token)
    fast.chat_template = tokenizer.chat_template
    return fast


class Gauge:
    """A CUDA device's use, in percent of time a kernel ran, read from NVML while it is entered; empty where there is no NVML."""

    def __init__(self, device: str) -> None:
        self.seen: list[float] = []
        self.memory_bytes = 0
        self._over = threading.Event()
        self._nvml: Any = None
        if device.startswith("cuda"):
            try:
                import pynvml

                pynvml.nvmlInit()
                self._nvml = pynvml
                self._handle = pynvml.nvmlDeviceGetHandleByIndex(int(device.partition(":")[2] or 0))
            except Exception as error:  # the seam to a driver: it is told, and figures are given without it
                print(f"NVML cannot be read ({error}); the device's use is not reported.", file=sys.stderr)

    def __enter__(self) -> Gauge:
        self._thread = threading.Thread(target=self._look, daemon=True)
        if self._nvml:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._nvml:
            self._thread.join()

    @property
    def name(self) -> str:
        """The device's name."""
        return str(self._nvml.nvmlDeviceGetName(self._handle)) if self._nvml else "none"

    @property
    def mean(self) -> float:
        """Mean use in percent; nan where it was not read."""
        return statistics.fmean(self.seen) if self.seen else math.nan

    def _look(self) -> None:
        while not self._over.wait(_LOOK_EVERY_S):
            self.seen.append(float(self._nvml.nvmlDeviceGetUtilizationRates(self._handle).gpu))
            self.memory_bytes = max(self.memory_bytes, int(self._nvml.nvmlDeviceGetMemoryInfo(self._handle).used))


def requests_for(tokenizer: Any, *, wanted: int, new: int, longest: int) -> list[Request]:
    """``wanted`` requests of ``new`` tokens each: the shipped prompts, over and over, each time begun otherwise."""
    prompts = workload.prompts_of(workload.SHIPPED)
    found: list[Request] = []
    turn = 0
    while len(found) < wanted:
        some = workload.requests_of([workload.Prompt(p.id, p.messages, new) for p in prompts], tokenizer, cap=new, longest=longest,
                                    wanted=wanted - len(found), mark=f"Turn {turn}. ")
        if not some:
            raise SystemExit(f"no shipped prompt fits {longest} tokens with {new} new ones.")
        found += some
        turn += 1
    return found


def measure(folder: Path, size: str, given: argparse.Namespace) -> str:
    """One size's table."""
    checkpoint, tokenizer = made(folder, size, dtype=given.dtype, tiny=given.tiny)
    told: dict[str, float] = {}
    requests = requests_for(tokenizer, wanted=given.requests, new=given.new, longest=given.longest)
    orders = [o for o in torch_orders(checkpoint, device=given.device, dtype=given.dtype, slots=given.slots, longest=given.longest)
              if o.name != "static batches"]
    if given.queue:
        mode = "fast" if given.dtype == "bfloat16" else "exact"
        devices = given.device if given.device == "cpu" else f"{given.device}={CUDA_BYTES >> 30}GiB"
        orders.append(queue_order(checkpoint, folder / f"{size}-stack", slots=given.slots, longest=given.longest,
                                  flags=f"--no-api --devices={devices} --engine=torch --mode={mode}",
                                  pushed="--untrained --no-export"))
    orders = [o for o in orders if not given.only or any(part in o.name for part in given.only)]
    runs: dict[str, list[tuple[Run, Gauge]]] = {}
    missing: dict[str, str] = {}
    for number in range(given.rounds):
        at = number % len(orders)
        for order in (*orders[at:], *orders[:at]):
            # one by one is slow and its rate does not depend on how many there are: a part is enough
            asked = requests[: max(4, len(requests) // 8)] if order.name == BASE else requests
            try:
                ran, ready_s = _one(order, asked, given, folder)
                runs.setdefault(order.name, []).append(ran)
                told.setdefault(order.name, ready_s)  # later ones find a stack's checkpoint stored and cached
            except Failed as failed:
                missing[order.name] = str(failed)
    prompts = sorted(len(r.ids) for r in requests)
    said = (f"{size}, {given.dtype}, random weights: {len(requests)} requests at once of {prompts[0]} to {prompts[-1]} tokens (sum {sum(prompts)}), "
            f"{given.new} new each; {given.rounds} rounds, medians; one by one over {max(4, len(requests) // 8)} of them")
    return "\n\n".join([said, _table(runs, told), *(f"{name}: not measured: {why}" for name, why in missing.items())])


def _one(order: Order, requests: Sequence[Request], given: argparse.Namespace, folder: Path) -> tuple[tuple[Run, Gauge], float]:
    with Contender(order, threads=given.threads, log=folder / "log") as contender:
        contender.run([Request(f"warm {n}", r.ids[: len(r.ids) // 2], r.text[: len(r.text) // 2], 4) for n, r in enumerate(requests[:4])], within_s=900)
        with Gauge(given.device) as gauge:
            seen = contender.run(requests, within_s=1800)
        ready_s = contender.ready.load_s if contender.ready else math.nan
    run = run_of(requests, seen.answers, began=seen.began, cpu_s=seen.cpu_s, rss_bytes=seen.rss_bytes, others_cores=seen.others_cores)
    return (run, gauge), ready_s


def _table(runs: dict[str, list[tuple[Run, Gauge]]], ready_s: dict[str, float]) -> str:
    """``ready_s``: seconds from the start of a contender's process to its being ready, the first time."""
    base = Spread.of([r.tokens_per_s for r, _ in runs[BASE]]).median if BASE in runs else math.nan
    rows = []
    for name, found in runs.items():
        rate = Spread.of([r.tokens_per_s for r, _ in found])
        first = Spread.of([percentile(r.ttft_s, 0.5) for r, _ in found]).median
        use, memory = Spread.of([g.mean for _, g in found]).median, max(g.memory_bytes for _, g in found)
        faults = [f for r, _ in found for f in r.faults]
        times = "–" if math.isnan(base) else f"{rate.median / base:.2f}"
        rows.append([name, f"{rate.median:.1f}", f"{rate.least:.1f} to {rate.most:.1f}", times, f"{first:.2f}",
                     "–" if math.isnan(use) else f"{use:.0f} %", f"{memory / 1e9:.1f}" if memory else "–",
                     f"{Spread.of([r.cpu_s for r, _ in found]).median:.1f}", f"{ready_s[name]:.1f}", faults[0] if faults else "none"])
    return table(["contender", "tokens/s", "min to max", f"× {BASE}", "first token p50 s", "use of the GPU", "GPU memory, GB", "CPU s", "ready after s",
                  "faults"], rows)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--size", action="append", choices=list(SIZES), help="default: all")
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--slots", type=int, default=64, help="sequences in one batch, for contenders that must be told")
    parser.add_argument("--longest", type=int, default=1024, help="tokens of a prompt and its answer; transformers' own allocates its cache by it")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", action="append", default=[], help="a part of a contender's name; may be given again. Default: all")
    parser.add_argument("--queue", action="store_true", help="also ours through a stack of its own: broker, store, pool")
    parser.add_argument("--work", type=Path, help="where checkpoints, stacks and logs lie and stay; default: a temporary folder")
    parser.add_argument("--tiny", action="store_true", help="models of a few thousand parameters")
    given = parser.parse_args()
    if given.device.startswith("cuda"):
        import torch

        if not torch.cuda.is_available():
            print("No CUDA device is at hand (or this torch is a CPU build), so nothing was measured. "
                  "`--tiny --device cpu` shows that the program runs.")
            return
    told = {**machine.described(), "device": given.device if given.device == "cpu" else Gauge(given.device).name}
    print("; ".join(f"{k}: {v}" for k, v in told.items()))
    for size in given.size or SIZES:
        with nullcontext(given.work) if given.work else tempfile.TemporaryDirectory() as folder:
            print(f"\n{measure(Path(folder), size, given)}", flush=True)


if __name__ == "__main__":
    main()
