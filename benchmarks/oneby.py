"""What transformers itself answers, one request at a time: what the matrix compares with."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path

import torch
import transformers

from catalogue_tiny import TinyCheckpoint
from symposia_worker.engines.sequence import Transcription
from symposia_worker.families import Renderer, family_of

#: what is put to a model for a hole between "a(" and ")b"; one without an entry cannot infill
HOLES = {"codegen25-7b-mono": "a(<mask_1>)b<|endoftext|><sep><mask_1>", "incoder-1b": "a(<|mask:0|>)b<|mask:1|><|mask:0|>",
         "stablelm-2-1_6b": "<|fim_prefix|>a(<|fim_suffix|>)b<|fim_middle|>"}
_CLASSES = {"generate": transformers.AutoModelForCausalLM, "seq2seq": transformers.AutoModelForSeq2SeqLM, "embed": transformers.AutoModel}


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer: what is compared of it. ``logprob_mean``: natural, of its tokens, of a plain forward; None where it was not taken."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    logprob_mean: float | None = None


class OneByOne:
    """A tiny checkpoint as transformers loads it in float32."""

    def __init__(self, checkpoint: TinyCheckpoint, folder: Path) -> None:
        self.checkpoint, self.folder = checkpoint, folder
        self.model = _CLASSES[checkpoint.kind].from_pretrained(folder, dtype=torch.float32).eval()
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)

    @cached_property
    def ends(self) -> list[int]:
        """The tokens that end an answer."""
        eos = self.model.generation_config.eos_token_id
        given = [eos] if isinstance(eos, int) else list(eos or ())
        return sorted(Renderer(family_of(self.model.config.model_type), self.tokenizer, eos=given).stop_ids)

    @property
    def architecture(self) -> str:
        """The class of the model."""
        return type(self.model).__name__

    def text_of(self, tokens: int) -> str:
        """A text whose prompt has as near to ``tokens`` tokens as whole lines of words come, and not more."""
        passage = files("symposia_worker.families").joinpath("passage.txt").read_text(encoding="utf-8")
        text = passage[: max(1, tokens // 3)]
        while len(self.ids(text)) > tokens and len(text) > 1:
            text = text[: -max(1, len(text) // 20)]
        while len(self.ids(passage[: len(text) + 1])) <= tokens:
            text = passage[: len(text) + 1]
        return text

    def ids(self, prompt: str, *, as_it_is: bool = False) -> list[int]:
        """The prompt as the tokenizer has it; by chat template where the checkpoint is said to have one."""
        if "instruct" in self.checkpoint.capabilities and not as_it_is:
            text = self.tokenizer.apply_chat_template([{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True)
            return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        if self.checkpoint.kind == "embed":  # the published forms: <s> text </s>, and UniXcoder's with its mode in front
            head = [0, 5, 2] if self.checkpoint.slug == "unixcoder-base" else [0]
            return [*head, *self.tokenizer(prompt, add_special_tokens=False)["input_ids"], 2]
        return list(self.tokenizer(prompt)["input_ids"])

    @torch.inference_mode()
    def answer(self, prompt: str, most: int, *, as_it_is: bool = False) -> Answer:
        """Greedy, by ``generate``."""
        ids = torch.tensor([self.ids(prompt, as_it_is=as_it_is)])
        if self.checkpoint.kind == "seq2seq":
            out = self.model.generate(ids, max_new_tokens=most, do_sample=False)[0, 1:]
            return Answer(self._text(out.tolist()), ids.shape[1], len(out))
        size = max(self.tokenizer.get_vocab().values()) + 1
        out = self.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=most, do_sample=False, pad_token_id=0,
                                  eos_token_id=self.ends, suppress_tokens=list(range(size, self.model.config.vocab_size)) or None)
        new = out[0, ids.shape[1] :]
        logits = self.model(input_ids=out, use_cache=False).logits[0, ids.shape[1] - 1 : -1, :size].float()
        logprobs = logits.log_softmax(-1).gather(1, new[:, None])
        return Answer(self._text(new.tolist()), ids.shape[1], len(new), float(logprobs.mean()))

    @torch.inference_mode()
    def vector(self, text: str) -> list[float]:
        """The mean of its states, of length one."""
        mean = self.model(input_ids=torch.tensor([self.ids(text)])).last_hidden_state[0].mean(0)
        return list((mean / mean.norm()).tolist())

    def _text(self, ids: list[int]) -> str:
        """As it is streamed: decoded whole, a run of byte tokens that is no UTF-8 loses the characters in it that are (Transcription)."""
        pieces = Transcription(lambda part: self.tokenizer.decode(part, skip_special_tokens=True, clean_up_tokenization_spaces=False))
        return "".join(map(pieces.push, ids)) + pieces.flush()
