"""Which checkpoints live on which device: the problem, its solution by a solver, and what is told of it."""
