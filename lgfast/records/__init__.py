"""The files of a run's folder: checkpoints, weights, metrics and the result."""
