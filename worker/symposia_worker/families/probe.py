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

_SPECIMENS = (PARAGRAPH, "def add(a, b):\n    return a + b  # 12345\n", "Größe, naïve, Привет, 你好 🎉\t end",
              "  two  spaces\n\n\nthree lines")

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
    bits_per_byte: float | None


def probe(folder: Path, *, ids: Sequence[Sequence[int]] | None = None) -> Loaded:
    """What ``folder`` is, by transformers' own plain loading. ``ids``: what ``specimen_ids`` gave before it was written.

    Raises Refused where it needs remote code, is of no kind that is loaded here, reads text otherwise than ``ids`` says, or
    predicts English badly.
    """
    config = _config(folder)
    kind = _kind(config)
    tokenizer = _tokenizer(folder)
    if ids is not None and specimen_ids(tokenizer) != [list(row) for row in ids]:
        raise Refused("the tokenizer read back from the folder gives other ids than the one that was written there.",
                      "Report it with the versions of transformers and tokenizers: such a checkpoint would read every prompt wrongly.")
    bits = _bits_of_folder(folder, tokenizer) if kind == "generate" else None
    capabilities = (kind, "instruct") if kind == "generate" and tokenizer.chat_template else (kind,)
    return Loaded(architecture=architecture_of(config), model_type=config.model_type, context=_context(config, tokenizer),
                  vocab=len(tokenizer), capabilities=capabilities, bits_per_byte=bits)


def specimen_ids(tokenizer: Any) -> list[list[int]]:
    """The token ids of a few texts of different kinds."""
    return [list(tokenizer(text)["input_ids"]) for text in _SPECIMENS]


def bits_per_byte(model: Any, tokenizer: Any, text: str = PARAGRAPH) -> float:
    """Bits the model needs per UTF-8 byte of ``text``, its first token given."""
    import torch

    ids = torch.tensor([tokenizer(text)["input_ids"]])  # (1, length)
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
                      "Fetch it from its publisher again; a model that is not meant for English cannot be added yet.")
    return bits


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


def _context(config: Any, tokenizer: Any) -> int:
    length = context_of(config, tokenizer)
    if length is None:
        raise Refused("neither its config.json nor its tokenizer says how long a text it can read.",
                      "Set model_max_length in its tokenizer_config.json.")
    return length


def _bits_of_folder(folder: Path, tokenizer: Any) -> float | None:
    from transformers import AutoModelForCausalLM

    size = sum(p.stat().st_size for p in folder.rglob("*.safetensors"))
    if size > 0.6 * _memory_available():
        return None
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, trust_remote_code=False, use_safetensors=True,
                                                     dtype="auto")
    except Exception as error:
        raise Refused(f"transformers cannot load it: {_first_line(error)}", _RESAVE) from None
    return require_plain_english(bits_per_byte(model.eval(), tokenizer))


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
    """The command line: FOLDER."""
    return report(lambda: probe(Path(sys.argv[1])))


if __name__ == "__main__":
    sys.exit(main())
