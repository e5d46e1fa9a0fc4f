"""An encoder-decoder's forms for OpenVINO: the encoder and the decoder each a model, tested and measured in our own lane's terms."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from symposia_worker.engines.exported_pair import ExportedPair
from symposia_worker.engines.protocol import Mode
from symposia_worker.engines.runtime import DECODER_XML, ENCODER_XML, weight_files
from symposia_worker.families.export import Source, Tested, number_of, prompts_of, windows, write_forms
from symposia_worker.families.forms import FormReport
from symposia_worker.families.kinds import context_of
from symposia_worker.families.measure import greedy_answers, pair_rate, processor

#: tokens of the passage that are given, and of those then written
_PIECE = 128
#: greedy tokens of each prompt in the self-test: rows leave apart
_NEW_TOKENS = (24, 9, 17, 13)


def export_pair(folder: Path, out: Path, *, threads: int) -> list[FormReport]:
    """Make, test and measure both forms of a checkpoint of an allowed architecture."""
    from transformers import AutoModelForSeq2SeqLM

    source = Source(folder, AutoModelForSeq2SeqLM, threads=threads)
    network, context = source.network, context_of(source.network.config, source.tokenizer) or _PIECE
    tested = TestedPair(out, passage=source.passage, prompts=prompts_of(source.passage, network.config, context), context=context,
                        vocabulary=source.vocabulary, reference=0.0, threads=threads)
    start = network.generation_config.decoder_start_token_id
    start = network.config.decoder_start_token_id if start is None else start
    tested.reference = tested.perplexity(lambda source, written: _torch_scores(network, source, written), start)
    write_forms(network, folder, out, task="text2text-generation-with-past", models=(ENCODER_XML, DECODER_XML))
    network.get_encoder().config.use_cache = False  # the exporter sets it, and transformers' encoder refuses to run with it
    return [tested.exact(network), tested.fast()]


class TestedPair(Tested):
    """The forms of an encoder-decoder in ``out``."""

    def _behind(self, network: Any) -> float:
        pair = self._pair("exact")
        most = 0.0
        for prompt, new in zip(self.prompts, greedy_answers(pair, self.prompts, list(_NEW_TOKENS[: len(self.prompts)]), vocabulary=self.vocabulary),
                               strict=True):
            logits = _torch_scores(network, prompt, [pair.start, *new[:-1]])[:, : self.vocabulary]
            most = max(most, *(float(row.max() - row[token]) for row, token in zip(logits, new, strict=True)))
        return most

    def _measured(self, mode: Mode) -> FormReport:
        pair = self._pair(mode)
        perplexity = self.perplexity(pair.scores, pair.start)
        activations, cache = pair.precisions
        del pair
        folder = self.out / mode
        rate, rows = pair_rate(folder, mode, self.prompts, threads=self.threads)
        size = sum(path.stat().st_size + path.with_suffix(".xml").stat().st_size for path in weight_files(folder))
        return FormReport(mode=mode, bytes=size, perplexity=number_of(perplexity), perplexity_float32=number_of(self.reference), tokens_per_s=rate,
                          rows=rows, threads=self.threads, processor=processor(), activations=activations, cache=cache)

    def perplexity(self, scores: Any, start: int) -> float:
        """Of every second piece of the passage, given the one before: its tokens are forced, so that all models are asked the same.

        ``scores(source, written)``: logits (tokens, vocabulary) of what follows each token of ``written``.
        """
        pieces = windows(self.passage, min(_PIECE, self.context - 1))
        nats, tokens = 0.0, 0
        for source, target in zip(pieces[::2], pieces[1::2], strict=False):
            logprobs = scores(source, [start, *target[:-1]])[:, : self.vocabulary].log_softmax(dim=-1)
            nats -= sum(float(row[token]) for row, token in zip(logprobs, target, strict=True))
            tokens += len(target)
        return math.exp(nats / tokens)

    def _pair(self, mode: Mode) -> ExportedPair:
        return ExportedPair(mode, self.out / mode, mode, threads=self.threads)


def _torch_scores(network: Any, source: list[int], written: list[int]) -> Any:
    import torch

    with torch.inference_mode():
        return network(input_ids=torch.tensor([source]), decoder_input_ids=torch.tensor([written])).logits[0].float()
