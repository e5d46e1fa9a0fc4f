"""What a stored checkpoint consists of, and names that cannot leave their folder."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, NamedTuple, Self

from pydantic import AfterValidator, Field, model_validator

from symposia_shared.catalogue import CheckpointId, Facts, Sha256
from symposia_shared.errors import BadInput, Damaged
from symposia_shared.values import Value, canonical_json

#: A name that begins with a dot is refused: so neither '.' nor '..' is a name, and those are left to the cache's own marks.
#: Keys of other characters, or that end in '/', are refused or rewritten by some S3 servers (facts: services §2.2).
_SEGMENT = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}")


def _safe_path(path: str) -> str:
    segments = path.split("/")
    if not (0 < len(path) <= 400 and len(segments) <= 8 and all(_SEGMENT.fullmatch(s) for s in segments)):
        raise ValueError(f"{path!r} is not a path within a checkpoint: it is made of letters, digits, '.', '_' and '-', its parts are "
                         "separated by '/', and none begins with a dot.")
    return path


#: a file's path within its checkpoint, '/' between its parts
SafePath = Annotated[str, AfterValidator(_safe_path)]


#: A digest is kept of every so many bytes of a file: what was cut off goes on, and what is damaged is found, at the next of them.
RANGE_BYTES = 8 * 1024 * 1024


def manifest_key(model: str) -> str:
    """The S3 key of the manifest of ``model``; it is written last, so its being there means that the checkpoint is whole."""
    return f"models/{model}/manifest.json"


class Ranges(Value):
    """The digests of a file's ranges, one after another; the last may be shorter."""

    #: of one range; that many times the downloads at once are held in memory
    bytes: int = Field(ge=4_096, le=64 * 1024 * 1024)
    sha256: tuple[Sha256, ...]


class Span(NamedTuple):
    """One range of a file. ``sha256`` is None where the manifest has none for it."""

    start: int
    length: int
    sha256: str | None


class StoredFile(Value):
    """One file of a checkpoint."""

    path: SafePath
    #: bytes
    size: int = Field(ge=0)
    sha256: Sha256
    #: None: it is one range, or it was stored before ranges were
    ranges: Ranges | None = None

    @model_validator(mode="after")
    def _covered(self) -> Self:
        if self.ranges is not None and len(self.ranges.sha256) != -(-self.size // self.ranges.bytes):
            raise ValueError(f"{self.path!r} of {self.size} bytes has {len(self.ranges.sha256)} ranges of {self.ranges.bytes} bytes.")
        return self

    @classmethod
    def of(cls, folder: Path, path: str) -> Self:
        """The file at ``path`` under ``folder``, read once."""
        whole, parts, size = hashlib.sha256(), [], 0
        with within(folder, path).open("rb") as file:
            while block := file.read(RANGE_BYTES):
                whole.update(block)
                parts.append(hashlib.sha256(block).hexdigest())
                size += len(block)
        ranges = Ranges(bytes=RANGE_BYTES, sha256=tuple(parts)) if size > RANGE_BYTES else None
        return cls(path=path, size=size, sha256=whole.hexdigest(), ranges=ranges)

    @property
    def spans(self) -> tuple[Span, ...]:
        """Its ranges in order; none for an empty file."""
        step = self.ranges.bytes if self.ranges else RANGE_BYTES
        digests: tuple[str | None, ...] = (self.sha256,) if self.size <= step else (None,) * -(-self.size // step)
        if self.ranges is not None:
            digests = self.ranges.sha256
        starts = range(0, self.size, step)
        return tuple(Span(start, min(step, self.size - start), digest) for start, digest in zip(starts, digests, strict=False))

    @property
    def by_range(self) -> bool:
        """Whether each of its ranges can be verified by itself."""
        return all(span.sha256 is not None for span in self.spans)


def revision_of(files: Iterable[StoredFile]) -> str:
    """The digest of the contents: equal files under equal names give equal revisions. 64 hexadecimal digits."""
    rows = sorted([f.path, f.size, f.sha256] for f in files)
    return hashlib.sha256(canonical_json(rows)).hexdigest()


class Manifest(Value):
    """A checkpoint: its files with their digests, and its facts. ``revision`` is the digest of the files."""

    id: CheckpointId
    revision: Sha256
    #: in the order of their paths
    files: tuple[StoredFile, ...] = Field(min_length=1)
    facts: Facts

    @model_validator(mode="after")
    def _sound(self) -> Self:
        paths = [f.path for f in self.files]
        # a file system that folds case would lay one over the other
        if len({p.lower() for p in paths}) != len(paths):
            raise ValueError("two files have the same path.")
        folders = {"/".join(p.split("/")[:n]) for p in paths for n in range(1, p.count("/") + 1)}
        if clash := folders.intersection(paths):
            raise ValueError(f"{clash.pop()!r} is both a file and a folder.")
        if paths != sorted(paths):
            raise ValueError("the files are not in the order of their paths.")
        if self.revision != revision_of(self.files):
            raise ValueError("the revision is not the digest of the files.")
        return self

    @classmethod
    def of(cls, model: str, files: Iterable[StoredFile], *, facts: Facts) -> Self:
        """The manifest of these files. Raises BadInput."""
        rows = sorted(files, key=lambda f: f.path)
        return cls.parse({"id": model, "revision": revision_of(rows), "files": [f.model_dump() for f in rows], "facts": facts.model_dump()})

    def sealed(self) -> bytes:
        """The JSON it is stored as: its fields, and their sha256 as ``seal``, for a flipped bit may leave it a sound manifest."""
        return canonical_json({**self.model_dump(mode="json"), "seal": hashlib.sha256(self.canonical()).hexdigest()})

    @classmethod
    def unsealed(cls, body: bytes, where: str, *, model: str) -> Self:
        """The manifest of ``model`` in ``body``, which was read from ``where``. Raises Damaged."""
        try:
            raw = json.loads(body)
            seal = raw.pop("seal", "none")
            found = cls.parse(raw)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Damaged(f"the manifest at {where} is not sound: {error} Remove the checkpoint and add it again.") from None
        # over what was written: a field that is new since then was not
        if seal != hashlib.sha256(canonical_json(raw)).hexdigest():
            raise Damaged(f"the manifest at {where} was changed after it was written. Remove the checkpoint and add it again.")
        if found.id != model:
            raise Damaged(f"the manifest at {where} is that of {found.id!r}, not of {model!r}. Remove the checkpoint and add it again.")
        return found

    @property
    def size(self) -> int:
        """Bytes of all files together."""
        return sum(f.size for f in self.files)

    def key(self, file: StoredFile) -> str:
        """Where ``file`` lies in S3."""
        return f"models/{self.id}/{self.revision}/{file.path}"


def within(folder: Path, path: str) -> Path:
    """``path`` of a manifest under ``folder``. Raises BadInput where it would leave it, by its own parts or through a link."""
    try:
        inside = folder.joinpath(*_safe_path(path).split("/"))
    except ValueError as error:
        raise BadInput(str(error), field="path", value=path) from None
    if not inside.resolve().is_relative_to(folder.resolve()):
        raise BadInput(f"{inside} leads out of {folder}.", field="path", value=path, remedy="Replace the link by the file itself.")
    return inside


def sha256_of(path: Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
