"""Rows as a batch's input: a line for each, and its columns kept beside."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from symposia.batches import TenantBatches
from symposia.tables.reading import ROWS, arrow_parquet, columns_of, form_of, rows_of
from symposia.tables.template import Template
from symposia_shared.batches.values import BatchFile
from symposia_shared.errors import BadInput


@dataclass(frozen=True, slots=True)
class Prompting:
    """What is asked of each row."""

    template: Template
    model: str
    system: Template | None = None
    #: fields of the bodies: max_tokens, temperature, seed
    sampling: tuple[tuple[str, Any], ...] = ()

    def line(self, number: int, row: dict[str, Any]) -> bytes:
        """The batch line of a row."""
        said = [] if self.system is None else [{"role": "system", "content": self.system.of_row(row)}]
        body = {"model": self.model, "messages": [*said, {"role": "user", "content": self.template.of_row(row)}], **dict(self.sampling)}
        line = {"custom_id": f"row-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}
        return json.dumps(line, ensure_ascii=False).encode("utf-8", "replace") + b"\n"


def put_table(batches: TenantBatches, paths: Sequence[Path], asked: Prompting) -> BatchFile:
    """Keep the input made of the rows of ``paths``, in order. Raises BadInput before anything is kept where a template names no column."""
    forms = {form_of(p.name) for p in paths}
    for path in paths:
        found = columns_of(path)
        if not found:
            continue  # an empty file has no columns, and no rows
        for template in (asked.template, asked.system):
            if template is not None:
                template.check(found)
    if "parquet" in forms and len(forms) > 1:
        raise BadInput("Parquet files are mixed with others.", field="input", remedy="Submit them as batches of their own.")
    kept: Literal["parquet", "jsonl"] = "parquet" if forms == {"parquet"} else "jsonl"
    writing = batches.files.writing(batches.tenant, paths[0].name, most=batches.client.settings.batches.max_bytes)
    with tempfile.TemporaryDirectory(prefix="symposia-") as folder, writing as file:
        beside = Path(folder) / f"columns.{kept}"
        for number, row in enumerate(_kept(paths, beside, kept), start=1):
            file.write(asked.line(number, row))
        batches.files.store.put_file(f"files/{file.id}/columns.{kept}", beside)
        return file.finish(columns=kept)


def _kept(paths: Sequence[Path], beside: Path, form: str) -> Iterator[dict[str, Any]]:
    """The rows, each written beside as it was."""
    if form == "parquet":
        yield from _kept_parquet(paths, beside)
        return
    with beside.open("wb") as out:
        for path in paths:
            for row in rows_of(path):
                out.write(json.dumps(row, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
                yield row


def _kept_parquet(paths: Sequence[Path], beside: Path) -> Iterator[dict[str, Any]]:
    parquet = arrow_parquet()
    schema = parquet.ParquetFile(paths[0]).schema_arrow
    with parquet.ParquetWriter(beside, schema) as out:
        for path in paths:
            table = parquet.ParquetFile(path)
            if not table.schema_arrow.equals(schema):
                raise BadInput(f"{path} has other columns than {paths[0]}.", field="input", value=str(path), remedy="Submit it as a batch of its own.")
            for batch in table.iter_batches(batch_size=ROWS):
                out.write_batch(batch)
                yield from batch.to_pylist()
