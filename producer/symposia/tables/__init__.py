"""Tables as batches: rows in by a prompt template, the same rows out with what was answered.

JSONL and CSV need nothing more; Parquet needs the extra ``tables`` (pyarrow). A row's columns are kept beside the batch's input, as they
were, and joined with the answers when these are written.
"""
