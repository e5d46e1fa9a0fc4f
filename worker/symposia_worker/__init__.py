"""The machinery of Symposia: tasks, canvas, pool, engines, families, model cache and the embedded stack."""
