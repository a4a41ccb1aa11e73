"""Several runs in one process: K students on one augmented batch and one teacher pass.

Each student has its own optimizer, schedule, meters, files and random numbers, so that it ends with the same bits as
if it had run alone with the same views (on CPU; tested). What runs may differ in is `OWN_KEYS`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from lgfast.assembly.device import resolve_device, resolve_precision
from lgfast.assembly.images import DataSplits, load_splits
from lgfast.assembly.loaders import Loaders, build_loaders
from lgfast.assembly.run import build_trainer, open_run_dir, prepare_teacher
from lgfast.assembly.targets import target_source
from lgfast.config import Config, digest, to_dict
from lgfast.data import Batch
from lgfast.guidance.teacher import TargetSource, Teacher, TeacherOutputs, TeacherTargets
from lgfast.records.checkpoint import WriteError
from lgfast.runtime.interrupt import Interrupted, InterruptFlag
from lgfast.training.evaluation import evaluate_all
from lgfast.training.loop import Trainer
from lgfast.training.saving import Progress

# What students of one group may differ in; everything else shapes the batch or the teacher.
OWN_KEYS = ("optim", "guidance.weight", "distill", "model.drop_path_rate", "seed", "name", "run_dir")


def group_key(config: Config) -> str:
    """Equal for runs that can share batches and teacher."""
    tree = to_dict(config)
    tree["data"]["seed"] = config.view_seed
    for key in OWN_KEYS:
        *path, leaf = key.split(".")
        node = tree
        for part in path:
            node = node[part]
        del node[leaf]
    return digest(tree)


class SharedTeacher:
    """The teacher of a group: says once what it has to say of a batch, for every student that then asks.

    The outputs stay in the same memory from batch to batch, where a student's captured step finds them.
    """

    def __init__(self, teacher: TargetSource) -> None:
        self.teacher = teacher
        self._kept: TeacherOutputs | None = None

    def begin_epoch(self, epoch: int) -> None:
        """Called by every student; the first call counts."""
        self.teacher.begin_epoch(epoch)

    @torch.no_grad()
    def prepare(self, batch: Batch) -> None:
        """Run the teacher on a batch, before its students step."""
        maps, logits = self.teacher.start(batch).wait()
        if self._kept is None:
            empty = [torch.empty_like(feature_map) for feature_map in maps]
            self._kept = TeacherOutputs(empty, None if logits is None else torch.empty_like(logits))
        for kept, feature_map in zip(self._kept.maps, maps, strict=True):
            kept.copy_(feature_map)
        if logits is not None:
            self._kept.logits.copy_(logits)

    def start(self, batch: Batch) -> TeacherTargets:
        """The outputs for the prepared batch, which must be this one."""
        return TeacherTargets(self._kept)

    def channels(self, image_size: int) -> list[int]:
        """Width of each chosen stage."""
        return self.teacher.channels(image_size)


class Student:
    """One run of a group: its trainer, its random numbers, and how it ended."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.status = "running"  # then complete, pruned, failed or saved
        self.error = ""
        self.trainer: Trainer | None = None
        self._rng: tuple[Tensor, Tensor | None] | None = None

    def build(
        self,
        splits: DataSplits,
        teacher: TargetSource | None,
        device: torch.device,
        flag: InterruptFlag,
        loaders: Loaders,
    ) -> Student:
        """Make the trainer, continuing from the run's newest checkpoint if there is one."""
        with self.acting():
            own_teacher = teacher if self.config.needs_teacher else None
            open_run_dir(self.config, resume=True)
            self.trainer = build_trainer(self.config, splits, own_teacher, device, flag, loaders)
            self.trainer.resume()
        return self

    @property
    def progress(self) -> Progress:
        return self.trainer.progress

    @contextlib.contextmanager
    def acting(self) -> Iterator[None]:
        """Work of this student: with its own random numbers; an error ends this student alone."""
        if self._rng is not None:
            set_rng_state(*self._rng)
        try:
            yield
        except Interrupted:
            self.status = "saved"
        except WriteError:  # not this student's fault
            raise
        except ValueError as error:
            self.status, self.error = "failed", str(error)
        self._rng = rng_state()


def rng_state() -> tuple[Tensor, Tensor | None]:
    """State of the default generators: CPU, and the current GPU where CUDA is in use."""
    return torch.get_rng_state(), torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None


def set_rng_state(cpu: Tensor, cuda: Tensor | None) -> None:
    torch.set_rng_state(cpu)
    if cuda is not None:
        torch.cuda.set_rng_state(cuda)


class Group:
    """Trains students in step with each other. A student that is ahead after a resume waits for the others.

    Args:
        students: of one `group_key`.
        loaders, teacher: shared by all; None for a group without a teacher.
        on_epoch: called with a student and its epoch's row; True stops the student (pruning).
    """

    def __init__(
        self,
        students: Sequence[Student],
        loaders: Loaders,
        teacher: SharedTeacher | None,
        on_epoch: Callable[[Student, dict[str, float]], bool],
    ) -> None:
        self.students, self.loaders, self.teacher, self.on_epoch = students, loaders, teacher, on_epoch

    def active(self, epoch: int | None = None) -> list[Student]:
        """Students still running; at this epoch, if one is given."""
        running = [student for student in self.students if student.status == "running"]
        return [student for student in running if epoch is None or student.progress.epoch == epoch]

    def run(self) -> None:
        for student in self.active():
            self.finish_if_done(student)
        while running := self.active():
            self.run_epoch(min(student.progress.epoch for student in running))

    def run_epoch(self, epoch: int) -> None:
        students, loader = self.active(epoch), self.loaders.train
        started, first = time.perf_counter(), epoch * len(loader)
        position = min(student.progress.step for student in students) - first
        loader.seek(epoch, position)
        for student in students:
            with student.acting():
                student.trainer.begin_epoch()
        for step, batch in enumerate(loader, first + position):
            self.train_batch(students, step, batch)
            if all(student.status != "running" or student.trainer.epoch_is_over() for student in students):
                break
        self.finish_epoch(self.active(epoch), time.perf_counter() - started)

    def train_batch(self, students: Sequence[Student], step: int, batch: Batch) -> None:
        """One step of every student that stands at it."""
        due = [
            student
            for student in students
            if student.status == "running" and student.progress.step == step and not student.trainer.epoch_is_over()
        ]
        if any(student.trainer.step.teacher is not None for student in due):
            self.teacher.prepare(batch)
        for student in due:
            with student.acting():
                student.trainer.train_batch(batch)

    def finish_epoch(self, students: Sequence[Student], seconds: float) -> None:
        judged = [student for student in students if student.trainer.is_evaluated()]
        models = [student.trainer.step.model for student in judged]
        scores = []
        if judged:
            trainer = judged[0].trainer
            scores = evaluate_all(models, self.loaders.select, trainer.device, trainer.step.dtype)
        by_student = dict(zip(judged, scores, strict=True))
        for student in students:
            with student.acting():
                row = student.trainer.finish_epoch(seconds, by_student.get(student))
                if self.on_epoch(student, row):
                    student.status = "pruned"
            self.finish_if_done(student)

    def finish_if_done(self, student: Student) -> None:
        if student.status == "running" and student.trainer.is_finished():
            student.trainer.finish()
            student.status = "complete"


def run_group(
    configs: Sequence[Config],
    interrupt: InterruptFlag,
    on_epoch: Callable[[Student, dict[str, float]], bool] = lambda student, row: False,
) -> list[Student]:
    """Train runs of one `group_key` together, each continuing from its newest checkpoint if it has one.

    Args:
        configs: each with its own `run_dir`.
    Returns:
        The students in the same order, each with its status. The test images are not touched.
    Raises:
        Interrupted: while the teacher, which comes first, was training.
    """
    if len({group_key(config) for config in configs}) != 1:
        raise ValueError(f"a group shares everything but {', '.join(OWN_KEYS)}; these configurations differ in more")
    configs = [resolve_precision(config) for config in configs]
    device, splits = resolve_device(configs[0].device), load_splits(configs[0])
    teacher, _ = prepare_teacher(most_demanding(configs), splits, device, interrupt)
    return train_group(configs, splits, teacher, device, interrupt, on_epoch)


def train_group(
    configs: Sequence[Config],
    splits: DataSplits,
    teacher: Teacher | None,
    device: torch.device,
    interrupt: InterruptFlag,
    on_epoch: Callable[[Student, dict[str, float]], bool],
) -> list[Student]:
    config = most_demanding(configs)
    loaders = build_loaders(config, splits, device)
    targets, batches = target_source(config, teacher, loaders.train)
    loaders = dataclasses.replace(loaders, train=batches)
    shared = SharedTeacher(targets) if targets else None
    students = [Student(config).build(splits, shared, device, interrupt, loaders) for config in configs]
    Group(students, loaders, shared, on_epoch).run()
    return students


def most_demanding(configs: Sequence[Config]) -> Config:
    """The one that decides whether the group has a teacher, and whether that gives logits."""
    return max(configs, key=lambda config: (config.distill.mode != "none", config.guidance.weight))
