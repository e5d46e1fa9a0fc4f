"""Weights: the model store in S3, the model cache on disk, and the sources checkpoints come from."""
