"""Locality guidance: the student imitates a small CNN's feature maps (Li et al., ECCV 2022)."""

from lgfast.guidance.distillation import distillation_loss
from lgfast.guidance.loss import Guidance
from lgfast.guidance.student import GuidedStudent
from lgfast.guidance.teacher import Teacher

__all__ = ["Guidance", "GuidedStudent", "Teacher", "distillation_loss"]
