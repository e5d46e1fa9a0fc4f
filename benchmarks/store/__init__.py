"""The model store measured: ``python -m benchmarks.store``."""
