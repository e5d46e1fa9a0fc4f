"""Batches measured on a stack of their own: ``python -m benchmarks.batches accept|lines|kills|real``."""
