"""A table's rows with what was answered, as they were and in their order."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from symposia.batches import TenantBatches
from symposia.tables.reading import ROWS, arrow_parquet, csv_line, form_of, rows_of
from symposia_shared.batches.values import Batch
from symposia_shared.errors import BadInput

#: what is added to the columns; where a table has one of that name, ours gets a ``_`` behind it
ADDED = ("answer", "error", "finish_reason", "prompt_tokens", "completion_tokens")


def write_table(batches: TenantBatches, batch: Batch, path: Path) -> int:
    """Write the rows of a table's batch to ``path``, in the form its ending names; returns how many. Raises BadInput where it was no table."""
    file = batches.file(batch.order.input_file_id)
    if file.columns is None:
        raise BadInput(f"the input of {batch.id} was no table.", field="output", value=str(path), remedy="Write its answers to a .jsonl file.")
    form = form_of(path.name)
    with tempfile.TemporaryDirectory(prefix="symposia-") as folder:
        beside = Path(folder) / f"columns.{file.columns}"
        store = batches.files.store
        with beside.open("wb") as out, store.reaching("read", file.id):
            for piece in store.client.get_object(Bucket=store.bucket, Key=f"files/{file.id}/{beside.name}")["Body"].iter_chunks(1024 * 1024):
                out.write(piece)
        answers = _answers(batches, batch)
        partial = path.with_name(path.name + ".part")
        count = _parquet(beside, answers, partial) if form == "parquet" else _text(rows_of(beside), answers, partial, form)
        partial.replace(path)
    return count


def _answers(batches: TenantBatches, batch: Batch) -> Iterator[dict[str, Any]]:
    """What is added to each row, in order: output and error file are each in the input's order, and a row is in one of them or in none."""
    sides = [_numbered(batches.lines(batch, which)) for which in ("out", "err")]
    heads = [next(side, None) for side in sides]
    number = 1
    while True:
        found: dict[str, Any] = {}
        for n, head in enumerate(heads):
            if head is not None and head[0] == number:
                found = head[1]
                heads[n] = next(sides[n], None)
        yield {name: found.get(name) for name in ADDED}
        number += 1


def _numbered(lines: Iterator[bytes]) -> Iterator[tuple[int, dict[str, Any]]]:
    for raw in lines:
        answer = json.loads(raw)
        custom_id = str(answer["custom_id"])
        if custom_id.startswith("row-"):
            yield int(custom_id[4:]), _added(answer)


def _added(answer: dict[str, Any]) -> dict[str, Any]:
    if answer["error"] is not None:
        return {"error": f"{answer['error']['code']}: {answer['error']['message']}"}
    body = answer["response"]["body"]
    choice, usage = body["choices"][0], body["usage"]
    return {"answer": choice["message"]["content"], "error": choice["message"].get("refusal"), "finish_reason": choice["finish_reason"],
            "prompt_tokens": usage["prompt_tokens"], "completion_tokens": usage["completion_tokens"]}


def _names(columns: list[str]) -> dict[str, str]:
    """Our columns' names beside those of the table."""
    found = {}
    for name in ADDED:
        ours = name
        while ours in columns:
            ours += "_"
        found[name] = ours
    return found


def _text(rows: Iterator[dict[str, Any]], answers: Iterator[dict[str, Any]], path: Path, form: str) -> int:
    count, header = 0, None
    with path.open("wb") as out:
        for row, added in zip(rows, answers, strict=False):
            names = _names(list(row))
            whole = {**row, **{names[k]: v for k, v in added.items()}}
            if form == "csv":
                if header is None:
                    header = list(whole)
                    out.write(csv_line(header))
                out.write(csv_line([whole.get(name) for name in header]))
            else:
                out.write(json.dumps(whole, ensure_ascii=False, default=str).encode("utf-8", "replace") + b"\n")
            count += 1
    return count


def _parquet(beside: Path, answers: Iterator[dict[str, Any]], path: Path) -> int:
    """Rows of Parquet keep their types; those of another form are given types by what is in them."""
    import pyarrow

    parquet = arrow_parquet()
    typed = {"answer": pyarrow.string(), "error": pyarrow.string(), "finish_reason": pyarrow.string(), "prompt_tokens": pyarrow.int64(),
             "completion_tokens": pyarrow.int64()}
    count, writer = 0, None
    try:
        for table in _tables(beside, pyarrow, parquet):
            added = list(islice(answers, table.num_rows))
            for name, ours in _names(list(table.column_names)).items():
                table = table.append_column(ours, pyarrow.array([a[name] for a in added], type=typed[name]))
            if writer is None:
                writer = parquet.ParquetWriter(path, table.schema)
            writer.write_table(table)
            count += table.num_rows
    finally:
        if writer is not None:
            writer.close()
    if writer is None:
        parquet.write_table(pyarrow.table({name: pyarrow.array([], type=kind) for name, kind in typed.items()}), path)
    return count


def _tables(beside: Path, pyarrow: Any, parquet: Any) -> Iterator[Any]:
    if beside.suffix == ".parquet":
        for batch in parquet.ParquetFile(beside).iter_batches(batch_size=ROWS):
            yield pyarrow.Table.from_batches([batch])
        return
    if not beside.stat().st_size:
        return
    from pyarrow import json as arrow_json

    # one block, so that the types found hold for all rows
    yield arrow_json.read_json(beside, read_options=arrow_json.ReadOptions(block_size=max(1 << 20, beside.stat().st_size + 1)))
