"""The training step: what it computes, in which precision, as a graph, and what it counts."""

from lgfast.step.losses import Losses, Objective
from lgfast.step.meters import TrainMeter
from lgfast.step.train_step import TrainStep

__all__ = ["Losses", "Objective", "TrainMeter", "TrainStep"]
