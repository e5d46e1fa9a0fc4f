"""What a checkpoint's folder is, tried by loading it plainly: run as ``python -m symposia_worker.families.probe FOLDER``.

It is a process of its own, for torch is imported here and large memory is used once. One JSON object goes to standard output:
the facts of ``Loaded``, or ``{"refused": ..., "remedy": ...}`` with exit code 2.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from symposia_worker.families.infill import infill_of
from symposia_worker.families.kinds import Kind, architecture_of, context_of, kind_of

#: A wrong tokenizer shows in the bits a model needs per byte of plain English, while a round trip of text does not
#: (facts: peers.md): right ones measured 0.84 to 0.91, wrong ones 8 to 11.
MOST_BITS_PER_BYTE = 1.5

#: Ours, written for this purpose. Do not change it: the bits per byte of stored checkpoints are those of this text.
PARAGRAPH = (
    "The old library stood at the end of a quiet street, between a bakery and a small garden where children played after "
    "school. Every morning at nine o'clock the librarian opened the heavy wooden doors, turned on the lamps, and put the "
    "newspapers on the long table near the window. In winter people came in to keep warm; in summer they came because it was "
    "cool. Some of them read for hours, others only looked at the pictures. In 1987 there were about 12,000 books on its "
    "shelves, and most of them had been given by families who lived in the town. Nobody could remember a time when the "
    "library had not been there."
)

#: Ours as well: a model of code alone predicts English badly and this well, a wrong tokenizer neither.
PROGRAM = '''import json
import os


class Counter:
    """Counts how often each word was seen."""

    def __init__(self, path):
        self.path = path
        self.counts = {}

    def add(self, word):
        if word not in self.counts:
            self.counts[word] = 0
        self.counts[word] += 1

    def save(self):
        with open(self.path, "w") as f:
            json.dump(self.counts, f)


def main():
    counter = Counter(os.path.join("data", "words.json"))
    for line in open("input.txt"):
        for word in line.split():
            counter.add(word.lower())
    counter.save()


if __name__ == "__main__":
    main()
'''

_SPECIMENS = (PARAGRAPH, "def add(a, b):\n    return a + b  # 12345\n", "Größe, naïve, Привет, 你好 🎉\t end",
              "  two  spaces\n\n\nthree lines")

#: of the memory that is free, what a checkpoint that is tried may take
_MOST_OF_MEMORY = 0.6

_RESAVE = "Save it with a present version of transformers."


class Refused(Exception):
    """The checkpoint is not what it should be; ``remedy`` says what to do."""

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message)
        self.remedy = remedy


@dataclass(frozen=True, slots=True)
class Loaded:
    """What loading it told."""

    architecture: str
    model_type: str
    context: int
    vocab: int
    capabilities: tuple[str, ...]
    #: of PARAGRAPH and of PROGRAM; None where the model is no generator, or too large to load here
    bits_per_byte: float | None
    code_bits_per_byte: float | None = None


def probe(folder: Path, *, ids: Sequence[Sequence[int]] | None = None, untrained: bool = False) -> Loaded:
    """What ``folder`` is, by transformers' own plain loading. ``ids``: what ``specimen_ids`` gave before it was written.

    Raises Refused where it needs remote code, is of no kind that is loaded here, lacks tensors, has a tokenizer of more tokens than
    embeddings, or reads text otherwise than ``ids`` says; and, unless it is said to be ``untrained``, where it predicts neither
    English nor Python.
    """
    config = _config(folder)
    kind = _kind(config)
    tokenizer = _tokenizer(folder)
    if ids is not None and specimen_ids(tokenizer) != [list(row) for row in ids]:
        raise Refused("the tokenizer read back from the folder gives other ids than the one that was written there.",
                      "Report it with the versions of transformers and tokenizers: such a checkpoint would read every prompt wrongly.")
    _require_bos(folder, tokenizer)
    context = _context(config, tokenizer)
    bits = _bits_of_folder(folder, tokenizer, kind, untrained=untrained)
    return Loaded(architecture=architecture_of(config), model_type=config.model_type, context=context, vocab=len(tokenizer),
                  capabilities=capabilities_of(kind, tokenizer), bits_per_byte=bits[0], code_bits_per_byte=bits[1])


def capabilities_of(kind: Kind, tokenizer: Any) -> tuple[str, ...]:
    """What a checkpoint's files say it can do; an engine adds what it can do with it."""
    if kind != "generate":
        return (kind,)
    return ("generate", *(["instruct"] if tokenizer.chat_template else []), *(["infill"] if infill_of(tokenizer) else []))


def specimen_ids(tokenizer: Any) -> list[list[int]]:
    """The token ids of a few texts of different kinds."""
    return [list(tokenizer(text)["input_ids"]) for text in _SPECIMENS]


def bits_per_byte(model: Any, tokenizer: Any, text: str = PARAGRAPH) -> float:
    """Bits the model needs per UTF-8 byte of ``text``, its first token given; of as much of it as the model reads."""
    import torch

    longest = context_of(model.config, tokenizer) or len(text)
    ids = torch.tensor([tokenizer(text)["input_ids"][:longest]])  # (1, length)
    with torch.inference_mode():
        logits = model(ids).logits[0, :-1].float()  # (length - 1, vocab)
    nats = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum").item()
    spoken = len(tokenizer.decode(ids[0, 1:], skip_special_tokens=True).encode())
    # a tokenizer that loses text would else look good: count the bytes that were there to be predicted
    return nats / math.log(2) / max(1, min(spoken, len(text.encode())))


def require_plain_english(bits: float) -> float:
    """``bits`` if it is what a right tokenizer gives. Raises Refused."""
    if not bits < MOST_BITS_PER_BYTE:
        raise Refused(f"it needs {bits:.2f} bits per byte of plain English, where less than {MOST_BITS_PER_BYTE} is right: "
                      "its tokenizer and its weights do not belong together, or it is not trained on English.",
                      "Fetch it from its publisher again; a model that is not meant for English is added as untrained (--untrained).")
    return bits


def require_prediction(english: float, code: float) -> None:
    """Raises Refused where neither text is predicted: models of code alone are at home in one of them only."""
    if not code < MOST_BITS_PER_BYTE:
        require_plain_english(english)


def _config(folder: Path) -> Any:
    from transformers import AutoConfig

    raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (ValueError, KeyError, OSError) as error:
        if "auto_map" in raw:
            kind = raw.get("model_type")
            raise Refused(f"its config.json asks for code of its own (auto_map), and transformers has no model type {kind!r}.",
                          "Remote code is never run. Look for a form of it that transformers loads natively.") from None
        raise Refused(f"transformers cannot read its config.json: {_first_line(error)}", _RESAVE) from None


def _kind(config: Any) -> Kind:
    kind = kind_of(config)
    if kind is None:
        raise Refused(f"its architecture {architecture_of(config) or 'is not named in config.json and so'!r} ({config.model_type}) is of no kind "
                      "that is loaded here.", "Text generators (…ForCausalLM), encoders (…Model, …ForMaskedLM) and T5 can be added.")
    return kind


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise Refused(f"its tokenizer cannot be loaded: {_first_line(error)}",
                      "Put tokenizer.json and tokenizer_config.json beside the weights. Remote code is never run.") from None


def _require_bos(folder: Path, tokenizer: Any) -> None:
    """A text must begin as the published tokenizer.json, or its add_bos_token, has it begin: without its bos a model predicts badly."""
    stated = json.loads(path.read_text(encoding="utf-8")) if (path := folder / "tokenizer_config.json").is_file() else {}
    first, bos = tokenizer("Hello")["input_ids"][0], tokenizer.bos_token_id
    wanted = stated.get("add_bos_token") is True
    if (folder / "tokenizer.json").is_file() and not wanted:
        from tokenizers import Tokenizer

        wanted = Tokenizer.from_file(str(folder / "tokenizer.json")).encode("Hello").ids[0] == bos and stated.get("add_bos_token") is not False
    if wanted and bos is not None and first != bos:
        raise Refused(f"its files ask for {tokenizer.bos_token!r} before each text, and the tokenizer loaded from them puts none.", _RESAVE)


def _context(config: Any, tokenizer: Any) -> int:
    length = context_of(config, tokenizer)
    if length is None:
        raise Refused("neither its config.json nor its tokenizer says how long a text it can read.",
                      "Set model_max_length in its tokenizer_config.json.")
    return length


def _bits_of_folder(folder: Path, tokenizer: Any, kind: Kind, *, untrained: bool) -> tuple[float | None, float | None]:
    """Bits per byte of English and of Python, after loading it; None each where it generates nothing, or is too large to load."""
    size = sum(p.stat().st_size for p in folder.rglob("*.safetensors"))
    if size > _MOST_OF_MEMORY * _memory_available():
        return None, None
    model = _model(folder, kind)
    _require_room_for(tokenizer, model)
    if kind != "generate":
        return None, None
    model = _widened(model, size)
    english, code = bits_per_byte(model, tokenizer), bits_per_byte(model, tokenizer, PROGRAM)
    if not untrained:
        require_prediction(english, code)
    return english, code


def _widened(model: Any, size: int) -> Any:
    """``model`` in float32 where a half precision one of ``size`` bytes has room for it.

    A processor without bfloat16 instructions multiplies one on one core: of 0.5e9 parameters the trial took 104 s of processor time, and 34 in float32.
    """
    import torch

    has_room = 2 * size <= _MOST_OF_MEMORY * _memory_available()
    return model.float() if model.dtype in (torch.bfloat16, torch.float16) and has_room else model


def _model(folder: Path, kind: Kind) -> Any:
    import transformers

    made = {"generate": transformers.AutoModelForCausalLM, "seq2seq": transformers.AutoModelForSeq2SeqLM}.get(kind, transformers.AutoModel)
    try:
        model, told = made.from_pretrained(folder, local_files_only=True, trust_remote_code=False, use_safetensors=True, dtype="auto",
                                           output_loading_info=True)
    except Exception as error:
        raise Refused(f"transformers cannot load it: {_first_line(error)}", _RESAVE) from None
    absent = sorted(k for k in told["missing_keys"] if kind != "embed" or not k.startswith("pooler."))
    if absent:  # transformers goes on with random numbers in their place
        raise Refused(f"it lacks {len(absent)} of its tensors ({', '.join(absent[:3])} ...).", "Fetch or save it again, whole.")
    return model.eval()


def _require_room_for(tokenizer: Any, model: Any) -> None:
    """A prompt's ids must be rows of the embedding, bos among them."""
    rows = model.get_input_embeddings().weight.shape[0]
    highest = max(i for text in _SPECIMENS for i in tokenizer(text)["input_ids"])
    named = max((i for i in (tokenizer.bos_token_id, tokenizer.eos_token_id) if i is not None), default=0)
    if max(highest, named) >= rows:
        raise Refused(f"its tokenizer gives the id {max(highest, named)} and its model knows {rows}: they do not belong together.",
                      "Save the tokenizer it was trained with beside it.")


def _memory_available() -> int:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return int(os.sysconf("SC_PAGE_SIZE")) * int(os.sysconf("SC_PHYS_PAGES"))


def _first_line(error: Exception) -> str:
    line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return line if len(line) <= 300 else line[:297] + "..."


def report(work: Any) -> int:
    """Run ``work()``, a Loaded, and print it or why it was refused, as one line of JSON; the exit code."""
    try:
        facts = work()
    except Refused as refused:
        print(json.dumps({"refused": str(refused), "remedy": refused.remedy}))
        return 2
    print(json.dumps(asdict(facts)))
    return 0


def main() -> int:
    """The command line: FOLDER OPTIONS, where OPTIONS is JSON: ``{"untrained": true}``."""
    options = json.loads(sys.argv[2]) if len(sys.argv) > 2 else {}
    return report(lambda: probe(Path(sys.argv[1]), **options))


if __name__ == "__main__":
    sys.exit(main())
