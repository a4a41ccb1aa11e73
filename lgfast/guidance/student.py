"""The module that a step trains: a student, its feature taps and the guidance projections."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from lgfast.guidance.learned_taps import LearnedTaps, check_alike
from lgfast.guidance.loss import Guidance
from lgfast.guidance.teacher import TeacherTargets
from lgfast.models.layer_groups import freeze
from lgfast.models.taps import FeatureTaps, tap_shapes
from lgfast.ops.feature_mse import WeightedLoss
from lgfast.runtime.compilation import compile_once


class GuidedStudent(nn.Module):
    """A student that also returns its guidance loss.

    Guidance runs inside forward, so that a wrapper such as DistributedDataParallel sees every parameter used.

    Args:
        model: the student.
        layers: flat indices of the tapped blocks; empty for no guidance.
        teacher_channels: width of each teacher stage.
        image_size: side of the student's input, to find the width of each tap.
        transform: what the maps are compared by (`Guidance`).
        learned: mix the tapped blocks into one map a teacher stage (`LearnedTaps`) rather than pair them one to one.
        compiled: train under torch.compile; evaluation calls `model` itself.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[int] = (),
        teacher_channels: Sequence[int] = (),
        image_size: int = 224,
        transform: str = "linear",
        *,
        learned: bool = False,
        compiled: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        self._call_model = compile_once(call_model) if compiled else call_model
        self.guidance: Guidance | None = None
        self._taps: FeatureTaps | None = None
        self.is_guided = bool(layers)
        self._frozen: list[nn.Module] = []
        if layers:
            shapes = tap_shapes(model, layers, image_size)
            taps = None
            if learned:
                check_alike(shapes)
                taps = LearnedTaps(len(teacher_channels), len(layers))
                shapes = shapes[:1] * len(teacher_channels)
            channels = [width for width, _ in shapes]
            self.guidance = Guidance(channels, teacher_channels, transform, taps)
            self._taps = FeatureTaps(model, layers)

    def freeze(self, what: str) -> None:
        """Stop the training of a part of the model (`models.layer_groups.freeze`)."""
        self._frozen = freeze(self.model, what)

    def train(self, mode: bool = True) -> GuidedStudent:
        """torch's `train`; frozen modules stay in evaluation mode."""
        super().train(mode)
        for module in self._frozen:
            module.train(False)
        return self

    def end_guidance(self) -> None:
        """Remove the taps. The projections keep their last values and get no gradient any more."""
        if self._taps is not None:
            self._taps.close()
            self._taps = None
        self.is_guided = False
        if self.guidance is not None:
            self.guidance.requires_grad_(False)

    def forward(
        self, images: Tensor, targets: TeacherTargets | None = None, weight: Tensor | None = None
    ) -> tuple[Tensor | tuple[Tensor, Tensor], WeightedLoss | None]:
        """
        Args:
            images: [B, C, H, W].
            targets: what `Teacher.start` returned for the same batch; None for no guidance.
            weight: factor of the guidance loss, a scalar on the device; None: 1.
        Returns:
            The logits of `call_model`, [B, K] each, and the guidance loss (None without targets).
        """
        if self._taps is not None:
            self._taps.clear()  # an evaluation leaves some, for which a compiled model would be compiled anew
        logits = self._call_model(self.model, images)
        student_maps = self._taps.take() if self._taps is not None else None
        if targets is None or self.guidance is None or not self.is_guided:
            return logits, None
        return logits, self.guidance(student_maps, targets.wait().maps, weight)


def call_model(model: nn.Module, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
    """Return the logits of every head: two where a distillation token is trained, else one."""
    return model(images)
