"""The chaos suite: a stack of its own under load, its processes killed at random, and an audit of what became of every job.

    python -m benchmarks.chaos --jobs 5000 --kills 200 --power-cuts 20 --seed 1
"""
