"""A published folder to a plain one: run as ``python -m symposia_worker.families.convert FOLDER INTO OPTIONS``.

Plain means: weights as safetensors, an architecture transformers has, a tokenizer.json, no code. The program runs as a trial does,
in a process without secrets. Pickles are read by torch's loader for weights alone, which builds tensors and nothing else.
OPTIONS is JSON: ``{"without_template": true}`` leaves out the chat template of a base model.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from symposia_worker.families import codegen25, grouped_mpt
from symposia_worker.families.probe import Loaded, Refused, probe, report, specimen_ids

#: buffers older versions of transformers stored; none is a parameter
_BUFFERS = (".attn.causal_mask", ".attn.bias", ".attention.bias", ".masked_bias", ".position_ids", ".rotary_emb.inv_freq")
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja")
_REFETCH = "Fetch it again, or add a form of it that has safetensors."

Transform = Callable[[str, Any], Any]


def convert(folder: Path, into: Path, *, without_template: bool = False, untrained: bool = False) -> Loaded:
    """Write ``folder`` plainly to ``into`` and tell what it is. Raises Refused."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    transform: Transform = _as_it_is
    if grouped_mpt.is_grouped(config):
        given = dict(config)
        transform = partial(grouped_mpt.expanded, config=given)
        config = _or_refused(lambda: grouped_mpt.plain_config(given))
    config.pop("auto_map", None)
    (into / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    _copy_others(folder, into)
    tokenizer = _tokenizer(folder, into, config)
    if without_template:
        tokenizer.chat_template = None
    tokenizer.save_pretrained(into)
    if without_template:
        (into / "chat_template.jinja").unlink(missing_ok=True)
    _or_refused(lambda: _write_weights(folder, into, transform))
    for written in into.iterdir():
        written.chmod(0o644 if written.is_file() else 0o755)
    return probe(into, ids=specimen_ids(tokenizer), untrained=untrained)


def _as_it_is(name: str, tensor: Any) -> Any:
    return tensor


def _or_refused(work: Callable[[], Any]) -> Any:
    try:
        return work()
    except (ValueError, KeyError, TypeError) as error:
        raise Refused(f"it cannot be made plain: {error}.", _REFETCH) from None


def _copy_others(folder: Path, into: Path) -> None:
    """What explains the checkpoint, and how its vectors are pooled."""
    for path in sorted(folder.iterdir()):
        if path.suffix in (".md", ".html") or path.name.lower().split(".")[0] in ("license", "licence", "notice") or path.name in (
                "generation_config.json", "modules.json", "sentence_bert_config.json"):
            shutil.copyfile(path, into / path.name)
        elif path.is_dir() and path.name.endswith("_Pooling") and (path / "config.json").is_file():
            (into / path.name).mkdir()
            shutil.copyfile(path / "config.json", into / path.name / "config.json")


# -- tokenizers


def _tokenizer(folder: Path, into: Path, config: Mapping[str, Any]) -> Any:
    """The tokenizer, by the class it was published with; one whose class is code is refused unless its layout is known here."""
    import transformers

    stated = _json(folder / "tokenizer_config.json")
    if codegen25.is_codegen25(stated):
        tokenizer = _or_refused(lambda: codegen25.tokenizer_of(folder, int(config["vocab_size"])))
        tokenizer.model_max_length = stated.get("model_max_length") or config.get("max_position_embeddings")
        return tokenizer
    name = str(stated.get("tokenizer_class") or "")
    made = getattr(transformers, name, None) or transformers.AutoTokenizer
    if (folder / "tokenizer.json").is_file():
        made = transformers.AutoTokenizer  # reads that file, whatever class wrote it
    if stated.get("auto_map") and not (folder / "tokenizer.json").is_file() and not hasattr(transformers, name):
        raise Refused(f"its tokenizer {name or 'has no name and'} is code of its own.", "Remote code is never run. Put a tokenizer.json beside it.")
    plain = _without_code(folder, into)
    try:
        return made.from_pretrained(plain, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise Refused(f"its tokenizer cannot be loaded: {str(error).strip().splitlines()[0][:300] if str(error).strip() else error!r}",
                      "Put tokenizer.json and tokenizer_config.json beside the weights. Remote code is never run.") from None
    finally:
        shutil.rmtree(plain, ignore_errors=True)


def _without_code(folder: Path, into: Path) -> Path:
    """A folder of the tokenizer's files and the plain configuration, in which nothing asks for code."""
    plain = into / ".tokenizer"
    plain.mkdir()
    for path in folder.iterdir():
        if path.is_file() and path.suffix in (".json", ".txt", ".model", ".jinja") and "index" not in path.name:
            shutil.copyfile(path, plain / path.name)
    shutil.copyfile(into / "config.json", plain / "config.json")
    if (plain / "tokenizer_config.json").is_file():
        stated = {k: v for k, v in _json(plain / "tokenizer_config.json").items() if k != "auto_map"}
        (plain / "tokenizer_config.json").write_text(json.dumps(stated), encoding="utf-8")
    return plain


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return found if isinstance(found, dict) else {}


# -- weights


def _write_weights(folder: Path, into: Path, transform: Transform) -> None:
    """Each file of weights as a file of safetensors, one at a time, and the index where there are several."""
    from safetensors.torch import save_file

    files = weight_files(folder)
    if transform is _as_it_is and all(path.suffix == ".safetensors" for path in files):
        for path in (*files, *folder.glob("*.safetensors.index.json")):
            shutil.copyfile(path, into / path.name)
        return
    tied = _tied(into)
    where: dict[str, str] = {}
    total = 0
    for number, path in enumerate(files, start=1):
        name = "model.safetensors" if len(files) == 1 else f"model-{number:05d}-of-{len(files):05d}.safetensors"
        kept = {key: transform(key, tensor).contiguous() for key, tensor in _tensors(path) if not key.endswith(_BUFFERS)}
        kept = _without_copies(kept, tied)
        save_file(kept, into / name, metadata={"format": "pt"})
        where |= dict.fromkeys(kept, name)
        total += sum(t.nbytes for t in kept.values())
    if len(files) > 1:
        (into / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": where}), encoding="utf-8")


def weight_files(folder: Path) -> list[Path]:
    """The safetensors of a folder, or else its pickles of weights, in order; never optimizer states or training arguments."""
    safe = sorted(folder.glob("*.safetensors"))
    return safe or sorted(p for p in folder.glob("pytorch_model*.bin"))


def _tensors(path: Path) -> Iterator[tuple[str, Any]]:
    import pickle

    import torch
    from safetensors.torch import load_file

    if path.suffix == ".safetensors":
        yield from load_file(path).items()
        return
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        said = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise Refused(f"{path.name} holds more than weights, or is damaged, and is not read: {said}", _REFETCH) from None
    if not isinstance(state, dict) or not all(isinstance(t, torch.Tensor) for t in state.values()):
        raise Refused(f"{path.name} is no dictionary of tensors.", _REFETCH)
    yield from state.items()


def _tied(folder: Path) -> dict[str, str]:
    """Names of tensors that are another tensor in the model's class: transformers ties them again when it loads."""
    import torch
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    from symposia_worker.families.kinds import kind_of

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (ValueError, KeyError, OSError):
        return {}
    kind = kind_of(config)
    made = {"generate": AutoModelForCausalLM, "seq2seq": AutoModelForSeq2SeqLM}.get(kind or "", AutoModel)
    if kind is None:
        return {}
    with torch.device("meta"):
        model = made.from_config(config)
    return dict(getattr(model, "all_tied_weights_keys", None) or {})


def _without_copies(tensors: dict[str, Any], tied: Mapping[str, str]) -> dict[str, Any]:
    """Tensors that share their memory stored once where the model ties them, else each for itself."""
    import torch

    kept = {k: t for k, t in tensors.items() if not (k in tied and tied[k] in tensors and torch.equal(t, tensors[tied[k]]))}
    seen: set[int] = set()
    for key, tensor in kept.items():
        place = tensor.untyped_storage().data_ptr()
        if place in seen:
            kept[key] = tensor.clone()
        seen.add(place)
    return kept


def main() -> int:
    """The command line: FOLDER INTO OPTIONS."""
    options = json.loads(sys.argv[3]) if len(sys.argv) > 3 else {}
    return report(lambda: convert(Path(sys.argv[1]), Path(sys.argv[2]), **options))


if __name__ == "__main__":
    sys.exit(main())
