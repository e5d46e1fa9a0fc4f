"""Batches: a file of requests in, its answers in files out, driven by whichever coordinator holds it.

Redis, under the deployment's prefix:

    batches       zset  batches that have not ended, by when they were made or resumed
    batches:T     zset  all batches of tenant T, by when they were made
    batch:ID      hash  rec the order (JSON), st status, at:STATUS when it came to it (s), end how it is to end, try times it was begun, hi spans
                        begun, c:N counts of span N once its parts are in S3, live counts of spans that are open, own, until who drives it
                        until when (ms), out, err its files, why faults
    files:T       hash  file id → its facts (JSON)
    filed         zset  ``T ID`` of files, by when they were made (s)     expiring zset likewise, by when they are to be deleted
    throughput    hash  model → ``lines a second, measured at (s)``, of batches that kept their place full

S3:

    files/ID/content      a file         files/ID/survey.json    of a batch's input: where its lines are
    files/ID/columns      of a table: its rows as they were (``columns.parquet`` or ``columns.jsonl``)
    batches/ID/parts/TRY/N-out.jsonl, N-err.jsonl    answers of span N
    batches/ID/batch.json      the batch as it ended
    jobs/ID-LINE/...           the papers of each line's job, as of any other

A span is a run of lines; its parts are written when its last line has ended, then it is marked in one step with its counts. So whatever
is killed, the next driver goes on at the first span that is not marked: of its lines those that have a result are not asked again.
"""
