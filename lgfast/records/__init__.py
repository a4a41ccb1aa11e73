"""Reads and writes the files of a run's folder: checkpoints, weights, metrics and the result."""
