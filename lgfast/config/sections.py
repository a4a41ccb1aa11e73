"""The configuration of a run: frozen dataclasses, one a section, with a line for every key."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Annotated, Literal

from lgfast.spec.augment import AugmentSpec
from lgfast.spec.fields import (
    Amount,
    Count,
    CountFromOne,
    Decay,
    Fraction,
    Index,
    NotEmpty,
    Positive,
    Range,
    Seed,
    Share,
    Text,
    check_fields,
)
from lgfast.spec.pixels import EIGHT_BITS, PATTERN, parse_format

Side = Annotated[int, Range(1, 4096)]  # pixels
Pixels = Annotated[int, Range(1, 178_956_970)]  # Pillow refuses larger images
PathText = Annotated[str, Text(r"[^\ud800-\udfff]*", "a path in UTF-8")]  # safetensors and TensorBoard open no other
Pattern = Annotated[str, Text(r"[^\ud800-\udfff]{0,1000}", "a regular expression")]
Workers = Annotated[int, Range(0, 1024)]
Stop = Annotated[str, Text(r"never|epoch:[1-9][0-9]{0,8}|adaptive|relative", "never, epoch:N, adaptive or relative")]
Freeze = Annotated[str, Text(r"|backbone|blocks:[1-9][0-9]{0,3}", "blocks:N or backbone, or nothing")]
Slope = Annotated[float, Range(below=0, text="a number below 0")]
Device = Annotated[str, Text(r"auto|cpu|cuda(:[0-9]+)?", "auto, cpu, cuda or cuda:N")]
# the name of one folder, so that nothing is written elsewhere
FolderName = Annotated[str, Text(r"(?!\.{1,2}$)[^/\\\ud800-\udfff]{1,150}", "a folder's name, up to 150 letters")]


class Section:
    """A part of the configuration. Making one checks its fields against their annotations."""

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class DataConfig(Section):
    """Which images, and how they reach the step."""

    # digits needs no files; folder: class folders of your own
    dataset: Literal["digits", "cifar10", "cifar100", "flowers102", "tiny_imagenet", "chaoyang", "folder"] = "digits"
    root: NotEmpty = "data"  # folder that holds the dataset's files
    download: bool = False  # fetch the files where torchvision can
    skip_broken: bool = False  # leave out images that cannot be decoded, with a warning that counts and names them
    exif_orientation: bool = False  # turn image files as their EXIF tag says
    stored_side: Count | None = 0  # reduce images whose short side is longer to this; 0: never; none: to what views use
    # rgb: 8-bit RGB, whatever the files hold; stored: the channels and bits that the files of a folder hold, also .npy
    # arrays [h, w, channels]. All files have one format (uint16x1); the run keeps it, and measures augment.mean and std
    pixels: Annotated[str, Text(rf"rgb|stored|{PATTERN}", "rgb, stored, or a format such as uint8x1, uint16x4")] = "rgb"
    # CSV with the columns file and label (and split: train, test or val, where it says the parts), in place of class
    # folders; its path, or its name below root
    labels: PathText = ""
    # text between the classes of an image in the table's column label, as ';', where it may have several, or none: each
    # class is then a yes or no of its own (sigmoid, binary cross entropy; see eval.metric=map). "": one class an image
    label_separator: Annotated[str, Text(r"[^\ud800-\udfff]{0,8}", "up to 8 letters")] = ""
    test_fraction: Fraction = 0.2  # share of each class that is the test part of a folder without train/ and test/
    # a regular expression: images whose paths below root match with the same text (its first group) are never on both
    # sides of a split, as those of one patient or plant; or a column of data.labels. "": images have no groups
    group: Pattern = ""
    folds: Annotated[int, Range(0, 100)] = 0  # split the training images into so many folds, one the test; 0: do not
    fold: Count = 0  # number of the test fold, from 0; the others train
    max_pixels: Pixels = 89_478_485  # refuse images with more, which fill the memory; at most 178,956,970
    # resident (native, images in memory), dali (NVIDIA DALI reads image files), timm (Pillow workers)
    loader: Literal["resident", "dali", "timm"] = "resident"
    workers: Workers = 0  # timm: processes that prepare images, 0: this one; dali: decoding threads, 0: one a core
    seed: Seed | None = None  # decides the order of the images and their views; none: the run's seed
    views: Count = 0  # number of views of each image, which then recur; 0: a new view every epoch
    # for classes of few images. loss: the cross entropy of class c counts n / (classes * n_c) times; logits: training
    # adds the logarithm of its share to each (arXiv 2007.07314); sampler: an epoch shows all classes equally often
    balance: Literal["none", "loss", "logits", "sampler"] = "none"
    batch_size: CountFromOne = 64  # images of one optimisation step, over all ranks
    eval_batch_size: CountFromOne = 200  # images judged at a time
    train_limit: Count = 0  # keep this many training images, classes balanced; 0: all
    test_limit: Count = 0  # keep this many test images, classes balanced; 0: all

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.folds == 1:
            raise ValueError("folds: expected 0 or at least 2, got 1")
        if self.fold >= max(1, self.folds):
            raise ValueError(f"fold: expected 0 to {max(1, self.folds) - 1} of {self.folds} folds, got {self.fold}")
        if self.is_multi_label and not self.labels:
            raise ValueError("label_separator: classes are parted in a table; name it with data.labels")
        if self.is_multi_label and self.balance != "none":
            raise ValueError(f"balance: {self.balance} weighs images of one class each; use data.balance=none")
        if self.is_multi_label and self.loader == "dali":
            raise ValueError("loader: dali reads images of one class each; use data.loader=resident or timm")
        if self.folds and self.train_limit:
            raise ValueError("train_limit: folds are of all images; use data.train_limit=0, or data.folds=0")
        if not self.is_rgb and self.dataset != "folder":
            raise ValueError(f"pixels: {self.dataset} is 8-bit RGB; use data.pixels=rgb, or data.dataset=folder")
        if not self.is_rgb and self.loader != "resident":
            raise ValueError(f"loader: {self.loader} decodes 8-bit RGB; use data.loader=resident, or data.pixels=rgb")
        try:
            re.compile(self.group)
        except re.error as error:
            raise ValueError(f"group: {self.group!r} is no regular expression: {error}") from None

    @property
    def is_rgb(self) -> bool:
        """Whether images become 8-bit RGB."""
        return self.pixels == "rgb"

    @property
    def is_multi_label(self) -> bool:
        """Whether an image may have several classes."""
        return self.label_separator != ""


@dataclass(frozen=True)
class ModelConfig(Section):
    """The network to train. The shape fields override the named model's own where they are set."""

    name: NotEmpty = "deit_tiny_patch16_224"  # a model of lgfast or timm
    drop_path_rate: Share = 0.1  # probability that the last block's branches are dropped; less for earlier blocks
    patch_size: Side | None = None  # side of a patch, pixels; none: the model's own
    embed_dim: Annotated[int, Range(1, 65536)] | None = None  # width of a token
    depth: Annotated[int, Range(1, 1000)] | None = None  # number of blocks
    num_heads: Annotated[int, Range(1, 4096)] | None = None  # attention heads of a block
    # own: the model's; mimetic: attention and positions as training tends to leave them (ICML 2023, arXiv 2305.09828);
    # impulse: every head looks at one neighbour of each patch (NeurIPS 2025, arXiv 2505.19985)
    init: Literal["own", "mimetic", "impulse"] = "own"
    pretrained: bool = False  # start from timm's trained weights, from the Hugging Face hub or its cache
    # start from a run, a .safetensors, .pth or .pyth; another image size, patch or head is fitted. "": from nothing
    init_from: PathText = ""
    # fused: lgfast.ops.short_attention wherever its kernels take the input; plain: the model's own
    attention: Literal["fused", "plain"] = "fused"

    def __post_init__(self) -> None:
        super().__post_init__()
        if sum((self.init != "own", self.pretrained, self.init_from != "")) > 1:
            raise ValueError("init_from: a model starts in one way; set one of model.init, pretrained and init_from")

    def shape_overrides(self) -> dict[str, int]:
        names = ("patch_size", "embed_dim", "depth", "num_heads")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


@dataclass(frozen=True)
class TeacherConfig(Section):
    """The frozen CNN whose features guide the student."""

    recipe: NotEmpty = "digits-resnet8"  # the recipe that trains the teacher when checkpoint=auto
    name: str = ""  # any CNN of timm in place of the recipe's; "": the recipe's
    checkpoint: NotEmpty = "auto"  # auto: trained once per (images, recipe); otherwise a run folder or weights file
    # batch: statistics of the current batch (of this rank), as the paper's code does; synced: of all ranks' batches;
    # running: the trained statistics
    bn: Literal["batch", "synced", "running"] = "batch"
    # live: computed in every step; cached: once per image and view, then read (exact; data.views=K, bn=running);
    # offline: as the paper's code has it, maps of the un-augmented images, cropped and flipped as the images are
    targets: Literal["live", "cached", "offline"] = "live"
    stages: tuple[Index, ...] = ()  # teacher stages to imitate; (): the model's default three
    cache: PathText = ""  # folder of trained teachers and stored targets; "": $LGFAST_CACHE or ~/.cache/lgfast


@dataclass(frozen=True)
class GuidanceConfig(Section):
    """How the student imitates the teacher (Li et al., ECCV 2022)."""

    weight: Amount = 2.5  # factor of the feature loss; 0: none, and no teacher unless it is distilled
    student_layers: tuple[Index, ...] = ()  # indices over all blocks; (): the paper's choice for the model (taps=fixed)
    # fixed: one block a teacher stage; learned: a weighted mean of student_layers ((): of all blocks), weights trained
    taps: Literal["fixed", "learned"] = "fixed"
    # how the maps are compared; similarity: between the images of one forward pass of one rank
    transform: Literal["linear", "attention", "similarity"] = "linear"
    # when guidance, and with it the teacher's work, ends for good. never; epoch:N: after N epochs; adaptive: when the
    # guidance loss falls more slowly than stop_threshold an epoch (TNNLS 2024, for runs of about 300 epochs);
    # relative: when at its present pace it would fall by less than a share of its first value over a whole run
    stop: Stop = "never"
    stop_threshold: Slope | None = None  # none: -0.02 (adaptive), -0.5 (relative)


@dataclass(frozen=True)
class DistillConfig(Section):
    """Distillation of the teacher's logits, beside guidance or alone.

    A model with a distillation token (deit_tiny_distilled_patch16_224) learns it with that token's head.
    """

    mode: Literal["none", "soft", "hard"] = "none"  # soft: the teacher's probabilities; hard: its most likely class
    temperature: Annotated[float, Range(0.01, 1000)] = 1.0  # both logits are divided by it (soft)
    weight: Amount = 0.5  # loss: cls_weight * cross entropy + weight * distillation + guidance
    cls_weight: Amount | None = None  # factor of the cross entropy; none: 1 - weight
    # both logits are given mean 0 and deviation 1 first, and the loss is summed over classes (soft; CVPR 2024, arXiv
    # 2403.01427, with weight 9, cls_weight 0.5 and temperature 3 for vision transformers)
    standardise: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cls_weight is None and self.weight > 1:
            raise ValueError(f"weight: expected 0 to 1, more with distill.cls_weight, got {self.weight}")
        if self.standardise and self.mode == "hard":
            raise ValueError("standardise: a most likely class has no logits to standardise; use distill.mode=soft")

    @property
    def cross_entropy_weight(self) -> float:
        return 1 - self.weight if self.cls_weight is None else self.cls_weight


@dataclass(frozen=True)
class OptimConfig(Section):
    """Optimizer and learning-rate schedule."""

    # adamw: this package's flat one; muon: matrices of blocks, adamw for the rest; otherwise any name of timm's factory
    name: NotEmpty = "adamw"
    lr: Positive = 5e-4  # highest learning rate
    min_lr: Amount = 5e-6  # learning rate at the schedule's end
    weight_decay: Amount = 0.05  # for matrices; biases, norms, class tokens and position embeddings have none
    momentum: Decay = 0.9  # momentum of SGD
    muon_momentum: Decay = 0.95  # momentum of the matrices under optim.name=muon
    warmup_epochs: Count = 20  # epochs in which the learning rate rises
    warmup_factor: Share = 1e-3  # first learning rate of the warm-up, as a share of lr
    # after the warm-up: cosine as in the paper's code; lgfast/optim/schedule.py describes onecycle, step and wsd
    schedule: Literal["cosine", "linear", "constant", "step", "onecycle", "wsd"] = "cosine"
    decay_epochs: CountFromOne = 30  # step: epochs between two falls; wsd: epochs at the end
    decay_rate: Share = 0.1  # step: factor of each fall
    per_step: bool = False  # True: the schedule moves at every step; False: once an epoch, as the paper's code does
    label_smoothing: Share = 0.0  # share of a label that all classes get equally
    clip_norm: Amount = 0.0  # largest global gradient norm; 0: no clipping
    layer_decay: Annotated[float, Range(above=0, high=1)] = 1.0  # a layer's rate, as a share of the next layer's
    freeze: Freeze = ""  # not trained: blocks:N, the first N blocks and what precedes them; backbone: all but the head


@dataclass(frozen=True)
class StepConfig(Section):
    """How a step is executed; graph, streams, compile and fused_layers do not change what it computes."""

    graph: Literal["auto", "on", "off"] = "auto"  # replay the step as one CUDA graph; auto: where it can be captured
    streams: Literal["on", "off"] = "on"  # the teacher runs beside the student (CUDA)
    compile: Literal["on", "off"] = "off"  # run student and teacher under torch.compile
    # run the student's blocks by vit_block, or their parts by add_layer_norm and bias_gelu (lgfast.fuse_layers); auto:
    # where that is known to be faster, which is whole blocks in float32 on a CPU
    fused_layers: Literal["auto", "on", "off"] = "auto"
    accumulate: CountFromOne = 1  # forward and backward passes per step, each over an equal part of the batch
    ema_decay: Decay = 0.0  # decay of a moving average of the weights, which is then judged and kept; 0: no average
    ema_warmup: bool = False  # after t steps the decay is at most (1 + t) / (10 + t)


@dataclass(frozen=True)
class EvalConfig(Section):
    """When the model is judged, and on which images."""

    protocol: Literal["holdout", "paper"] = "holdout"  # paper: choose the best epoch on the test set, as its code does
    holdout_fraction: Fraction = 0.1  # share of the training images that selects the best epoch (holdout)
    every_epochs: CountFromOne = 1  # judge every so many epochs
    # the measure that chooses the best epoch, and a sweep's winner; the last three weigh rare classes alike.
    # map: mean average precision, where images have several classes (data.label_separator)
    metric: Literal["top1", "top5", "balanced_accuracy", "macro_f1", "map"] = "top1"
    patience: Count = 0  # end the run after so many epochs without a better one; 0: only at its last epoch


@dataclass(frozen=True)
class LogConfig(Section):
    """What the run writes, and how often."""

    every_steps: CountFromOne = 50  # write a line of metrics every so many steps
    save_every_steps: Count = 0  # write a checkpoint every so many steps too; 0: only at the end of epochs
    save_every_s: Amount = 30.0  # save at the end of an epoch where the last checkpoint is this old; 0: every epoch
    keep_checkpoints: CountFromOne = 2  # number of newest checkpoints to keep
    print_epochs: bool = True  # print a line for each epoch
    report: bool = True  # write at the end of a run what its network gets wrong (test/) and a page (index.html)
    # service that gets the same scalars, where its package is installed; a resumed run keeps its id
    tracker: Literal["none", "wandb", "mlflow", "trackio"] = "none"
    tensorboard: bool = True  # write event files, where the package tensorboard is installed


@dataclass(frozen=True)
class Config(Section):
    """One training run."""

    name: FolderName = "digits"  # name of the run and its folder
    epochs: Count = 300  # 0: as many as make min_steps steps, but no fewer than 20
    min_steps: CountFromOne = 4000  # steps that epochs=0 asks for
    max_steps: Count = 0  # stop after this many steps; 0: no limit
    seed: Seed = 1  # decides the initial weights and what training draws; data.seed can decide order and views instead
    device: Device = "auto"  # auto, cpu, cuda, cuda:1
    precision: Literal["auto", "fp32", "bf16", "fp16-amp"] = "auto"  # auto: bf16 where that is faster, else fp32
    run_dir: PathText = ""  # "": runs/<name>-<date>-<time>
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentSpec = field(default_factory=AugmentSpec)
    model: ModelConfig = field(default_factory=ModelConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    guidance: GuidanceConfig = field(default_factory=GuidanceConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    step: StepConfig = field(default_factory=StepConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    log: LogConfig = field(default_factory=LogConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        patch, size = self.model.patch_size, self.augment.image_size
        if patch is not None and patch > size:
            raise ValueError(f"model.patch_size: expected at most augment.image_size, {size}, got {patch}")
        if self.data.batch_size % self.step.accumulate:
            raise ValueError(
                f"step.accumulate: {self.step.accumulate} does not divide data.batch_size, {self.data.batch_size}"
            )
        if self.needs_teacher and self.augment.teacher_size == 0:
            raise ValueError(
                "augment.teacher_size: the teacher needs an input size, got 0; set it (32), "
                "or guidance.weight=0 and distill.mode=none to train without a teacher"
            )
        self._check_schedule()
        self._check_labels()
        self._check_pixels()
        if self.needs_teacher and (obstacle := self._targets_obstacle()):
            raise ValueError(f"teacher.targets: {self.teacher.targets} cannot be: {obstacle}")

    def _check_schedule(self) -> None:
        """Raise a ValueError for a fall that begins in the warm-up, or comes after the run's end."""
        schedule, decay = self.optim.schedule, self.optim.decay_epochs
        most = {"wsd": self.epochs - self.optim.warmup_epochs, "step": self.epochs - self.optim.warmup_epochs - 1}
        if decay > most.get(schedule, decay):
            raise ValueError(
                f"optim.decay_epochs: with optim.schedule={schedule} expected at most {max(most[schedule], 0)}, since "
                f"{self.optim.warmup_epochs} of the {self.epochs} epochs are warm-up, got {decay}"
            )

    def _check_labels(self) -> None:
        """Raise a ValueError for what is not defined where an image has several classes, or for one alone."""
        if not self.data.is_multi_label:
            if self.eval.metric == "map":
                raise ValueError("eval.metric: map is of images with several classes; set data.label_separator")
            return
        if self.distill.mode != "none":
            raise ValueError("distill.mode: logits of one class an image are distilled; use distill.mode=none")
        if self.optim.label_smoothing:
            raise ValueError("optim.label_smoothing: smooths one class an image; use 0 with data.label_separator")

    def _check_pixels(self) -> None:
        """Raise a ValueError for augmentation that does not fit the images' pixels."""
        spec, format = self.augment, parse_format(self.data.pixels)
        if self.data.is_rgb and spec.channels != 3:
            raise ValueError(f"augment.mean: expected 3 values, since images are RGB, got {spec.channels}")
        if self.data.is_rgb and spec.value_range != EIGHT_BITS:
            raise ValueError("augment.value_range: 8-bit RGB has 0 to 255; other images need data.pixels=stored")
        if format is not None and format.channels != spec.channels:
            raise ValueError(
                f"augment.mean: expected {format.channels} values, as data.pixels={format} has, got {spec.channels}"
            )
        if not self.data.is_rgb and spec.color_jitter[3]:
            raise ValueError(
                "augment.color_jitter: the hue is of 8-bit RGB; set its fourth value to 0, or use data.pixels=rgb"
            )

    @property
    def channels(self) -> int:
        """The number of values of a pixel, as the network takes them.

        Raises:
            ValueError: `data.pixels` is still `stored`: no image has been read.
        """
        if self.data.pixels == "stored":
            raise ValueError("data.pixels: the format of the images is not known before they are read")
        return self.augment.channels

    def _targets_obstacle(self) -> str | None:
        """Why the teacher's targets cannot be computed ahead of the step as asked, or None."""
        targets, is_batch = self.teacher.targets, self.teacher.bn != "running"
        if targets == "live":
            return None
        if self.augment.mixes:
            return "mixed images are new every time; set augment.mixup_alpha=0 and augment.cutmix_alpha=0"
        if targets == "cached":
            if self.data.views == 0:
                return "only views that recur can be kept; set data.views=K"
            if self.data.balance == "sampler":
                return "a balanced epoch does not show every image; use data.balance=loss or logits"
            return "a map depends on the batch's other images; use teacher.bn=running" if is_batch else None
        if self.distill.mode != "none":
            return "logits of whole images are no targets for crops; use distill.mode=none"
        if self.augment.weak:
            return "maps of whole images have no black border to shift in; use augment.weak=false"
        return "one process computes the maps; use teacher.bn=batch or running" if self.teacher.bn == "synced" else None

    @property
    def needs_teacher(self) -> bool:
        """Whether a teacher's maps or logits are targets."""
        return self.guidance.weight > 0 or self.distill.mode != "none"

    @property
    def view_seed(self) -> int:
        """Seed of the order of the images and of their views."""
        return self.seed if self.data.seed is None else self.data.seed
