"""Rows of tables: JSONL, CSV and Parquet, in files, folders' patterns or ``s3://`` patterns. Never more than a few thousand rows are held."""

from __future__ import annotations

import csv
import fnmatch
import glob
import io
import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

from symposia_shared.errors import BadInput
from symposia_shared.settings import S3Settings
from symposia_shared.store import Store

Form = Literal["jsonl", "csv", "parquet"]
_FORMS: dict[str, Form] = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".parquet": "parquet", ".pq": "parquet"}
#: rows of a Parquet file at once
ROWS = 1_000

Row = dict[str, Any]


def form_of(name: str) -> Form:
    """A table's form by its name's end. Raises BadInput."""
    found = _FORMS.get(Path(name).suffix.lower())
    if found is None:
        raise BadInput(f"{name!r} has the ending of no table.", field="input", value=name, remedy="Use .jsonl, .csv or .parquet.")
    return found


@contextmanager
def local_copies(sources: Sequence[str], s3: S3Settings) -> Iterator[list[Path]]:
    """The files that paths and patterns name, those in S3 fetched to a temporary folder. Raises BadInput where a pattern names none."""
    with ExitStack() as stack:
        paths: list[Path] = []
        for source in sources:
            if source.startswith("s3://"):
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="symposia-")))
                paths += _fetched(source, s3, folder)
            else:
                found = sorted(glob.glob(source, recursive=True)) or ([source] if Path(source).exists() else [])
                if not found:
                    raise BadInput(f"there is no file {source}.", field="input", value=source, remedy="Check the path.")
                paths += [Path(p) for p in found]
        yield paths


def _fetched(uri: str, s3: S3Settings, folder: Path) -> list[Path]:
    bucket, _, pattern = uri.removeprefix("s3://").partition("/")
    store = Store(s3.model_copy(update={"bucket": bucket}))
    stem = pattern.split("*", 1)[0].split("?", 1)[0].split("[", 1)[0]
    keys = [k for k in store.keys(stem) if fnmatch.fnmatchcase(k, pattern)]
    if not keys:
        raise BadInput(f"no object matches {uri}.", field="input", value=uri, remedy="Check bucket and pattern; the deployment's S3 is asked.")
    paths = []
    for n, key in enumerate(keys):
        path = folder / f"{n:06d}{Path(key).suffix}"
        with path.open("wb") as file, store.reaching("read", key):
            shutil.copyfileobj(store.client.get_object(Bucket=bucket, Key=key)["Body"], file)
        paths.append(path)
    return paths


def columns_of(path: Path) -> list[str]:
    """A table's columns; of JSONL those of its first row."""
    form = form_of(path.name)
    if form == "parquet":
        return [str(name) for name in arrow_parquet().ParquetFile(path).schema_arrow.names]
    for row in rows_of(path):
        return list(row)
    return []


def rows_of(path: Path) -> Iterator[Row]:
    """The rows of one file. Raises BadInput naming the line at fault."""
    form = form_of(path.name)
    if form == "parquet":
        for batch in arrow_parquet().ParquetFile(path).iter_batches(batch_size=ROWS):
            yield from batch.to_pylist()
    elif form == "csv":
        yield from _csv(path)
    else:
        yield from _jsonl(path)


def _csv(path: Path) -> Iterator[Row]:
    csv.field_size_limit(64 * 1024 * 1024)
    with path.open(encoding="utf-8-sig", newline="") as text:
        reader = csv.DictReader(text, strict=True)
        try:
            for row in reader:
                if None in row or None in row.values():
                    raise BadInput(f"{path}, line {reader.line_num}: the row has another number of cells than the header.", field="input", value=str(path),
                                   remedy="Correct it.")
                yield dict(row)
        except (csv.Error, UnicodeDecodeError) as error:
            raise BadInput(f"{path}, line {reader.line_num}: {error}.", field="input", value=str(path), remedy="Give CSV in UTF-8.") from None


def _jsonl(path: Path) -> Iterator[Row]:
    with path.open("rb") as lines:
        for number, raw in enumerate(lines, start=1):
            if not raw.strip():
                continue
            try:
                row = json.loads(raw)
            except (ValueError, RecursionError) as error:
                raise BadInput(f"{path}, line {number}: {error}.", field="input", value=str(path), remedy="Give one JSON object a line.") from None
            if not isinstance(row, dict):
                raise BadInput(f"{path}, line {number} is a JSON {type(row).__name__}, not an object.", field="input", value=str(path),
                               remedy="Give one JSON object a line.")
            yield row


def arrow_parquet() -> Any:
    """pyarrow's Parquet. Raises BadInput where it is not installed."""
    try:
        import pyarrow.parquet
    except ModuleNotFoundError:
        raise BadInput("Parquet needs pyarrow, which is not installed.", field="input", remedy="Run `pip install 'symposia[tables]'`.") from None
    return pyarrow.parquet


def csv_line(cells: Sequence[Any]) -> bytes:
    """A line of CSV."""
    text = io.StringIO()
    csv.writer(text).writerow(["" if c is None else c if isinstance(c, str) else json.dumps(c, ensure_ascii=False, default=str) for c in cells])
    return text.getvalue().encode()
