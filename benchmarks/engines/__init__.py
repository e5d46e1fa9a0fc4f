"""Engines side by side: the same prompts, the same number of tokens, one process each, interleaved.

    python -m benchmarks.engines [--quick]

``wire`` and ``contenders.stage`` need the standard library alone, so that a contender may live in an environment of its own.
"""
