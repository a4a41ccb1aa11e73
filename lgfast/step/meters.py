"""Meters that stay on the device."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from lgfast.runtime import ranks
from lgfast.step.losses import Losses
from lgfast.step.reading import Reading
from lgfast.step.scores import ClassCounts, average_precision, mean_over_classes


class TrainMeter:
    """Sums over training steps, kept on the device until they are read.

    Columns: the `Losses`, correct, images, steps; one row since the last log line (window), one since the start of the
    epoch. The first step with a non-finite loss is remembered
    (-1: none).

    Args:
        multi_label: images may have several classes; correct is then that the likeliest is one of theirs.
    """

    WINDOW, EPOCH = 0, 1
    COLUMNS = ("loss", "cls_loss", "guidance_loss", "distill_loss", "correct", "images", "steps")

    def __init__(self, device: torch.device | str, multi_label: bool = False) -> None:
        self.multi_label = multi_label
        self.sums = torch.zeros(2, len(self.COLUMNS), dtype=torch.float64, device=device)
        self.bad_step = torch.full((), -1, dtype=torch.int64, device=device)
        self.step = torch.zeros((), dtype=torch.int64, device=device)

    @torch.no_grad()
    def update(self, losses: Losses, logits: Tensor, labels: Tensor) -> None:
        """Add one step. All arguments are on the device; logits [B, K], labels [B] class indices or [B, K] mixed."""
        likeliest = logits.argmax(1)
        if self.multi_label:
            correct = (labels.gather(1, likeliest[:, None]) >= 0.5).sum()
        else:
            correct = (likeliest == (labels.argmax(1) if labels.ndim == 2 else labels)).sum()
        images = torch.full_like(correct, len(logits))
        values = [torch.zeros_like(losses.total) if loss is None else loss for loss in losses]
        row = [*values, correct, images, torch.ones_like(correct)]
        self.sums += torch.stack([value.double() for value in row])
        bad = ~torch.isfinite(losses.total) & (self.bad_step < 0)
        self.bad_step.copy_(torch.where(bad, self.step, self.bad_step))
        self.step += 1

    def start_read(self, row: int) -> MeterReading:
        """Start to read the row's present sums over all ranks, and the first bad step of any rank."""
        return MeterReading(
            torch.cat([ranks.all_reduce_sum(self.sums[row]), ranks.all_reduce_max(self.bad_step).double()[None]])
        )

    def read(self, row: int) -> dict[str, float]:
        return self.start_read(row).means()

    def first_bad_step(self) -> int | None:
        return self.start_read(self.WINDOW).first_bad_step()

    def reset(self, row: int) -> None:
        self.sums[row].zero_()

    def state_dict(self) -> dict[str, Tensor]:
        return {"sums": self.sums.cpu(), "step": self.step.cpu()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.sums.copy_(state["sums"])
        self.step.copy_(state["step"])


class MeterReading(Reading):
    """One row of a TrainMeter; both methods wait for it."""

    def means(self) -> dict[str, float]:
        """Return means per step since the row's last reset, and training accuracy in percent."""
        sums = dict(zip(TrainMeter.COLUMNS, self.wait(), strict=False))
        steps, images = max(sums["steps"], 1), max(sums["images"], 1)
        return {
            "loss": sums["loss"] / steps,
            "cls_loss": sums["cls_loss"] / steps,
            "guidance_loss": sums["guidance_loss"] / steps,
            "distill_loss": sums["distill_loss"] / steps,
            "train_top1": 100 * sums["correct"] / images,
        }

    def first_bad_step(self) -> int | None:
        """Return the index of the first step whose loss was not finite, or None."""
        step = int(self.wait()[-1])
        return None if step < 0 else step


class EvalMeter:
    """Top-1 and top-5 hits, the summed cross entropy and the counts of every class, kept on the device.

    Where images may have several classes (labels [B, K] of 0 and 1), a hit is that one of the likeliest is theirs, a
    class is named where its probability is above one half, the cross entropy is the binary one, and the logits are kept
    for the mean average precision.

    Args:
        keeps_logits: keep them in any case.
    """

    def __init__(self, device: torch.device | str, keeps_logits: bool = False) -> None:
        self.sums = torch.zeros(5, dtype=torch.float64, device=device)
        self.classes = torch.zeros(3, 0, dtype=torch.float64, device=device)  # as ClassCounts has them
        self.keeps_logits = keeps_logits
        self.parts: list[tuple[Tensor, Tensor]] = []

    @torch.no_grad()
    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add one batch: logits [B, K], labels [B] or [B, K]. Top-5 is capped by the class count."""
        logits, is_multi_label = logits.float(), labels.ndim == 2
        top = logits.topk(min(5, logits.shape[1]), dim=1).indices
        self._know_classes(logits.shape[1])
        if is_multi_label:
            hits = labels.gather(1, top) > 0
            loss = functional.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(1).sum()
            named, there = logits > 0, labels > 0
            self.classes += torch.stack([part.sum(0) for part in (named & there, named, there)])
        else:
            hits = top == labels[:, None]
            loss = functional.cross_entropy(logits, labels, reduction="sum")
            ones = torch.ones_like(labels, dtype=torch.float64)
            for row, classes, values in ((0, labels, hits[:, 0].double()), (1, top[:, 0], ones), (2, labels, ones)):
                self.classes[row].index_add_(0, classes, values)
        count = torch.full_like(loss, len(labels))
        sums = hits[:, 0].sum(), hits.any(1).sum(), loss, count, count * is_multi_label
        self.sums += torch.stack([value.double() for value in sums])
        if is_multi_label or self.keeps_logits:
            self.parts.append((logits, labels))

    def read(self) -> dict[str, float]:
        """Return the scores in percent, the loss, and the number of images."""
        top1, top5, loss, count, multi_label = ranks.all_reduce_sum(self.sums).tolist()  # sync: once per evaluation
        if count == 0:
            raise ValueError("evaluation saw no image; check data.test_limit and the dataset's test split")
        counts = self.read_classes()
        scores = {
            "top1": 100 * top1 / count,
            "top5": 100 * top5 / count,
            "balanced_accuracy": 100 * float(counts.balanced_accuracy()),
            "macro_f1": 100 * float(counts.macro_f1()),
            "loss": loss / count,
            "images": int(count),
        }
        if multi_label:
            logits, labels = self.read_logits()
            precision = average_precision(logits.numpy(), labels.numpy())
            scores["map"] = 100 * float(mean_over_classes(precision, counts.there))
        return scores

    def read_classes(self) -> ClassCounts:
        number = torch.tensor(self.classes.shape[1], device=self.classes.device)
        self._know_classes(int(ranks.all_reduce_max(number)))  # a rank that saw no image does not know them
        return ClassCounts(*ranks.all_reduce_sum(self.classes).cpu().numpy())  # sync: once per evaluation

    def read_logits(self) -> tuple[Tensor, Tensor]:
        """Return logits [n, K] float32 and labels [n] or [n, K] on the CPU, in the images' order: rank r saw r,
        r + world, ..."""
        parts = [{"logits": logits.cpu(), "labels": labels.cpu()} for logits, labels in self.parts]
        by_rank = [tuple(found["parts"]) for found in ranks.gather({"parts": parts})]
        order = [torch.arange(sum(len(part["labels"]) for part in own)) for own in by_rank]
        places = torch.cat([own * len(by_rank) + rank for rank, own in enumerate(order)]).argsort()
        logits, labels = (torch.cat([part[name] for own in by_rank for part in own]) for name in ("logits", "labels"))
        return logits[places], labels[places]

    def _know_classes(self, num_classes: int) -> None:
        if self.classes.shape[1] < num_classes:
            self.classes = self.classes.new_zeros(3, num_classes)
