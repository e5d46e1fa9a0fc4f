"""GGUF to a plain transformers folder: run as ``python -m symposia_worker.families.gguf FILE FOLDER``.

The tokenizer is built from the file's own fields. transformers 5.5.4 converts both SmolLM2's and Gemma 3's wrongly and
silently: the ids are wrong while text still makes the round trip (facts: peers.md). The weights are read by transformers,
dequantized to fp32.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from symposia_worker.families.family import TURN_ENDS
from symposia_worker.families.probe import Loaded, Refused, bits_per_byte, probe, report, require_plain_english, specimen_ids

# token types of the format: gguf.TokenType
_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4

_INSTEAD = "Add the original checkpoint instead."


class Fields(Mapping[str, Any]):
    """The file's metadata: ``tokenizer.ggml.tokens`` and so on. ``reader``: the file as gguf has read it."""

    def __init__(self, file: Path) -> None:
        from gguf import GGUFReader

        try:
            self.reader = GGUFReader(file)
        except Exception as error:  # what it raises depends on where the damage is
            raise Refused(f"{file.name} is not a sound GGUF file: {error}", "Fetch it again.") from None

    def __getitem__(self, name: str) -> Any:
        return self.reader.fields[name].contents()

    def __iter__(self) -> Any:
        return iter(self.reader.fields)

    def __len__(self) -> int:
        return len(self.reader.fields)

    def token(self, role: str) -> str | None:
        """The token of a role: bos, eos, unknown, padding."""
        found = self.get(f"tokenizer.ggml.{role}_token_id")
        return None if found is None else self["tokenizer.ggml.tokens"][found]


@contextmanager
def read_once(reader: Any) -> Iterator[None]:
    """Where transformers reads the file, for the configuration and again for the weights, it is given ``reader``; and gguf's names of tensors are
    listed once, not for each of the model's modules. Of the 33 s of processor time that SmolLM2-135M took these were 15."""
    import gguf

    before = gguf.GGUFReader, gguf.get_tensor_name_map
    gguf.GGUFReader, gguf.get_tensor_name_map = lambda *_: reader, cache(gguf.get_tensor_name_map)
    try:
        yield
    finally:
        gguf.GGUFReader, gguf.get_tensor_name_map = before


def tokenizer_of(fields: Fields) -> Any:
    """The transformers tokenizer the file describes. Raises Refused for a kind that is not known here."""
    from transformers import PreTrainedTokenizerFast

    kind = fields.get("tokenizer.ggml.model")
    if kind == "gpt2":
        fast = _byte_level_bpe(fields)
    elif kind == "llama":
        fast = _sentencepiece_bpe(fields)
    else:
        raise Refused(f"its tokenizer is of the kind {kind!r}; 'gpt2' and 'llama' are known here.", _INSTEAD)
    _add_special(fast, fields)
    # SmolLM2 pads with its eos; a file without a padding token does the same
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=fast, bos_token=fields.token("bos"), eos_token=fields.token("eos"), unk_token=fields.token("unknown"),
        pad_token=fields.token("padding") or fields.token("eos"), clean_up_tokenization_spaces=False, model_max_length=context_of(fields),
    )
    tokenizer.chat_template = fields.get("tokenizer.chat_template")
    wanted, got = len(fields["tokenizer.ggml.tokens"]), len(tokenizer)
    if wanted != got:
        raise Refused(f"the tokenizer has {got} tokens, the file {wanted}.", _INSTEAD)
    return tokenizer


def context_of(fields: Fields) -> int:
    """The longest sequence the file says it is for, in tokens."""
    return int(fields[f"{fields['general.architecture']}.context_length"])


def _vocabulary(fields: Fields) -> dict[str, int]:
    return {token: i for i, token in enumerate(fields["tokenizer.ggml.tokens"])}


def _byte_level_bpe(fields: Fields) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    cut = fields.get("tokenizer.ggml.pre", "default")
    if cut != "smollm":
        raise Refused(f"its text is cut by the rules {cut!r}, which are not known here; 'smollm' is.", _INSTEAD)
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    fast = Tokenizer(models.BPE(vocab=_vocabulary(fields), merges=merges))
    digits, byte_level = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
    fast.decoder = decoders.ByteLevel()
    return fast


def _sentencepiece_bpe(fields: Fields) -> Any:
    """SentencePiece's BPE has no list of merges: any two pieces that make a piece merge, the best score of the whole first."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    if fields.get("tokenizer.ggml.add_space_prefix", True):
        raise Refused("its tokenizer puts a space before the text, which is not known here.", _INSTEAD)
    vocabulary, scores, types = _vocabulary(fields), fields["tokenizer.ggml.scores"], fields["tokenizer.ggml.token_type"]
    ranked = []
    for piece, i in vocabulary.items():
        if types[i] not in (_NORMAL, _USER_DEFINED):
            continue
        for cut in range(1, len(piece)):
            left, right = vocabulary.get(piece[:cut]), vocabulary.get(piece[cut:])
            if left is not None and right is not None:
                ranked.append((-scores[i], -scores[left], -scores[right], piece[:cut], piece[cut:]))
    ranked.sort(key=lambda merge: merge[:3])
    fast = Tokenizer(models.BPE(vocab=vocabulary, merges=[merge[3:] for merge in ranked], unk_token=fields.token("unknown"),
                                fuse_unk=True, byte_fallback=True))
    fast.normalizer = normalizers.Replace(" ", "▁")
    fast.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    fast.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return fast


def _add_special(fast: Any, fields: Fields) -> None:
    from tokenizers import AddedToken, processors

    typed = list(zip(fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"], strict=True))
    fast.add_special_tokens([AddedToken(token, special=True, normalized=False) for token, kind in typed if kind == _CONTROL])
    fast.add_tokens([AddedToken(token, special=False, normalized=False) for token, kind in typed if kind == _USER_DEFINED])
    bos = fields.token("bos")
    if fields.get("tokenizer.ggml.add_bos_token") and bos is not None:
        fast.post_processor = processors.TemplateProcessing(single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1",
                                                            special_tokens=[(bos, fast.token_to_id(bos))])


def ends_of(fields: Fields) -> list[int]:
    """Ids of the tokens that end a completion, the file's eos first; those that end a turn only where it has a chat template."""
    vocabulary, types = _vocabulary(fields), fields["tokenizer.ggml.token_type"]
    ids = [fields.get(f"tokenizer.ggml.{role}_token_id") for role in ("eos", "eot", "eom")]
    if fields.get("tokenizer.chat_template"):
        ids += [i for token in TURN_ENDS if (i := vocabulary.get(token)) is not None and types[i] in (_CONTROL, _USER_DEFINED)]
    return list(dict.fromkeys(i for i in ids if i is not None))


def convert(file: Path, folder: Path) -> Loaded:
    """Write ``file`` as a transformers folder of safetensors and what it was found to be. Raises Refused where it is not right."""
    fields = Fields(file)  # before the long import: most damage shows here

    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    tokenizer = tokenizer_of(fields)
    _check_bos(tokenizer, fields)
    with read_once(fields.reader):
        model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32, local_files_only=True,
                                                     trust_remote_code=False).eval()
    require_plain_english(bits_per_byte(model, tokenizer))
    ids = specimen_ids(tokenizer)
    if hasattr(model.config, "quantization_config"):
        # else the folder would be taken for a quantized one, and the GGUF file looked for
        del model.config.quantization_config
        model.hf_quantizer = None
    model.generation_config = GenerationConfig(bos_token_id=tokenizer.bos_token_id, eos_token_id=ends_of(fields),
                                               pad_token_id=tokenizer.pad_token_id)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    del model
    for written in folder.iterdir():
        written.chmod(0o644)
    return probe(folder, ids=ids)


def _check_bos(tokenizer: Any, fields: Fields) -> None:
    wanted = fields.get("tokenizer.ggml.bos_token_id") if fields.get("tokenizer.ggml.add_bos_token") else None
    first = tokenizer("Hello")["input_ids"][0]
    if wanted is not None and first != wanted:
        raise Refused(f"the file asks for the token {wanted} before each text, the tokenizer puts {first}.", _INSTEAD)


def main() -> int:
    """The command line: FILE FOLDER."""
    return report(lambda: convert(Path(sys.argv[1]), Path(sys.argv[2])))


if __name__ == "__main__":
    sys.exit(main())
