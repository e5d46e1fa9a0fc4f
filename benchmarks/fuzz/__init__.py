"""Whatever is given to whatever reads: no error outside the tree, and what is accepted is given back as it was.

    python -m benchmarks.fuzz --minutes 10
"""
