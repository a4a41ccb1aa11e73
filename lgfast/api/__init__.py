"""Use lgfast from Python, as in a notebook: `lgfast.train`, `load`, `predict`, `evaluate` and `export`.

They leave the process as they found it (signals, threads, random numbers, the current device), can be called any number
of times, and print nothing but a progress bar.
"""

from lgfast.api.networks import evaluate, export, load, predict
from lgfast.api.training import Run, train

__all__ = ["Run", "evaluate", "export", "load", "predict", "train"]
