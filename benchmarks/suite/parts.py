"""The parts of the suite: plain tables from a part's name to its command lines.

A command is a module and its arguments. `{out}` is the suite's folder, `{results}` the folder of the rows, `{ceilings}`
the CSV of the ceilings, `{data}` the folder of the data sets. A part is split into commands, so that each fits its time
limit and the suite can go on after the last finished one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

NAMES = (
    "build", "tests", "attention", "feature_mse", "augment", "optimizer", "step", "loader", "sweep", "digits",
    "compiled", "layers", "shapes", "train",
)  # fmt: skip
MEASURED = (  # as shares of the ceilings
    "attention", "feature_mse", "augment", "optimizer", "step", "compiled", "layers", "shapes", "profile"
)  # fmt: skip
ROW = "--out {results} --ceilings {ceilings}"


@dataclass(frozen=True)
class Command:
    """`python -m module arguments`.

    Attributes:
        module, text: the module and its arguments.
        minutes: how long it is expected to take; the suite does not begin it if less is left of a call.
        limit: minutes after which it is ended; 0: the part's limit.
        needs: pieces that it needs beside those of its module (see preflight.PIECES).
    """

    module: str
    text: str = ""
    minutes: float = 0
    limit: float = 0
    needs: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """The name of the command in the suite's state, independent of where folders are."""
        return f"{self.module} {self.text}".strip()

    @property
    def needs_process(self) -> bool:
        """Whether the command needs its own process, even where another program could run it faster."""
        return self.module in ("benchmarks.suite.gpu_tests", "benchmarks.smoke")

    def arguments(self, places: dict[str, object]) -> list[str]:
        """Return the arguments as words, with names filled in. Without ceilings, each benchmark measures them."""
        text = self.text if places.get("ceilings") else self.text.replace("--ceilings {ceilings}", "")
        return [word.format(**places) for word in text.split()]


OTHER_SHAPES = (
    "t2t_vit_7", "vit_small", "pit_ti", "pvt_v2_b0_stage1", "pvt_v2_b0_stage2", "pvt_v2_b0_stage3", "pvt_v2_b0_stage4",
)  # fmt: skip
STUDENTS = ("deit-ti", "pvtv2-b0", "pit-ti", "convit-ti", "t2t-vit-7", "pvt-ti")  # in order of interest
RUN = "--runs {out}/runs --results {results}"
TRAIN = f"{RUN} --set data.root={{data}}"
GUIDED = f"{TRAIN} --teacher cifar100-resnet56 --set teacher.bn=batch"


def attention(shapes: str, batches: str, minutes: float) -> Command:
    return Command("benchmarks.bench_short_attention", f"--shapes {shapes} --batches {batches} {ROW}", minutes)


def feature_mse(models: str, dtypes: str, minutes: float) -> Command:
    options = f"--providers torch,compile,lgfast --models {models} --dtypes {dtypes} --batch 128"
    return Command("benchmarks.bench_feature_mse", f"{options} {ROW}", minutes)


def step(providers: str, batch: int, minutes: float, more: str = "--no-stages", guidance: str = "on") -> Command:
    options = f"--providers {providers} --batch {batch} --guidance {guidance} {more}"
    return Command("benchmarks.bench_train_step", f"{options} {ROW}", minutes)


# Parts that the README reports come first, parts that take long to compile after them.
GPU: dict[str, list[Command]] = {
    "build": [Command("benchmarks.suite.build", minutes=2)],
    "tests": [Command("benchmarks.suite.gpu_tests", "--junit {out}/tests", minutes=4)],
    "ceilings": [Command("benchmarks.ceilings", "--out {results}", minutes=0.5)],
    "attention": [attention("deit_tiny", "256,128,512", 2)],
    "feature_mse": [feature_mse("deit_tiny", "bfloat16", 1)],
    "augment": [Command("benchmarks.bench_augment", f"--batches 128,512 {ROW}", minutes=1.5)],
    "optimizer": [Command("benchmarks.bench_optimizer", ROW, minutes=1)],
    "step": [
        step("paper,amp,lgfast", 128, 1.5, more=""),
        step("paper,amp,lgfast", 256, 1.5, more=""),
        step("paper,amp,lgfast", 512, 1.5),
    ],
    "loader": [Command("benchmarks.bench_loader", f"--images 1024 --cores 16 --rounds 3 {ROW}", minutes=2)],
    "sweep": [Command("benchmarks.bench_sweep", "--students 1,4,8 --out {results}", minutes=3)],
    "digits": [
        Command("benchmarks.suite.train", f"--recipe digits-base {RUN}", minutes=1.5),
        Command("benchmarks.suite.train", f"--recipe digits {RUN} --teacher digits-resnet8", minutes=2),
    ],
    "compiled": [step("amp,compile,compile-graph,lgfast", batch, 6) for batch in (128, 256)],
    "layers": [
        Command("benchmarks.bench_fused_layers", f"--batches 256 {ROW}", minutes=1.5),
        step("lgfast,loop,lgfast-compile,lgfast-fused-layers,lgfast-fused-layers-compile", 128, 3),
    ],
    "shapes": [
        step("paper,amp,lgfast", 128, 1.5, guidance="off"),
        *(attention(name, "256", 1) for name in OTHER_SHAPES),
        feature_mse("pit_ti,pvt_tiny,cvt_13", "bfloat16", 2),
        feature_mse("deit_tiny", "float32", 1),
    ],
    "train": [
        Command("benchmarks.suite.train", f"--recipe cifar100-resnet56 {TRAIN}", needs=("data",)),
        *(
            Command("benchmarks.suite.train", f"--recipe cifar100-{student}-{variant} {options}", needs=("data",))
            for student in STUDENTS
            for variant, options in (("base", TRAIN), ("guided", GUIDED))
        ),
    ],
    "profile": [Command("benchmarks.profile_step", f"--shape deit_tiny_224 --batch 128 {ROW}", minutes=1)],
}

FEW = f"--device cpu --rounds 2 {ROW}"
TINY = " ".join(
    f"--set {change}"
    for change in (
        "device=cpu", "epochs=1", "data.train_limit=60", "data.test_limit=40", "data.batch_size=16",
        "log.tensorboard=false",
    )
)  # fmt: skip
TINY_STUDENT = "--set model.embed_dim=32 --set model.depth=3"

# Parts on the CPU with tiny shapes. They show that the suite works, not how fast anything is.
DRY: dict[str, list[Command]] = {
    "build": [Command("benchmarks.suite.build", "--check")],
    "tests": [Command("benchmarks.suite.gpu_tests", "--junit {out}/tests tests/ops/test_feature_mse_cuda.py")],
    "ceilings": [Command("benchmarks.ceilings", "--device cpu --rounds 3 --scale 0.25 --out {results}")],
    "attention": [
        Command(
            "benchmarks.bench_short_attention",
            f"--shapes pvt_v2_b0_stage4 --batches 1 --providers lgfast,math {FEW}",
        )
    ],
    "feature_mse": [Command("benchmarks.bench_feature_mse", f"--models deit_tiny --batch 2 {FEW}")],
    "augment": [Command("benchmarks.bench_augment", f"--batches 4 {FEW}")],
    "loader": [Command("benchmarks.bench_loader", f"--images 64 --providers resident --cores 1 {FEW}")],
    "optimizer": [Command("benchmarks.bench_optimizer", f"--models cifar_resnet8 {FEW}")],
    "step": [
        Command(
            "benchmarks.bench_train_step",
            f"--shapes digits --batch 2 --guidance on --providers paper,lgfast --no-stages {FEW}",
        ),
    ],
    "sweep": [
        Command(
            "benchmarks.bench_sweep",
            "--device cpu --recipe digits --here --students 2 --steps 1 --repeats 1 --cores 1 --out {results}",
        ),
    ],
    "digits": [
        Command("benchmarks.suite.train", f"--recipe {recipe} {RUN} {TINY} {extra}")
        for recipe, extra in (
            ("digits-base", TINY_STUDENT),
            ("digits", f"{TINY_STUDENT} --set guidance.student_layers=0,1,2 --teacher digits-resnet8"),
        )
    ],
    "layers": [Command("benchmarks.bench_fused_layers", f"--batches 2 --providers eager,lgfast {FEW}")],
    "profile": [Command("benchmarks.profile_step", f"--shape digits --batch 2 {FEW}")],
}


def selected(only: str, profile: bool) -> list[str]:
    """Return the names of the parts to run, in order; the ceilings come before what is measured against them.

    Raises:
        ValueError: a name is unknown.
    """
    wanted = chosen(only, ("ceilings", *NAMES, "profile")) if only else set(NAMES)
    if profile:
        wanted.add("profile")
    if wanted & set(MEASURED):
        wanted.add("ceilings")
    order = ("build", "tests", "ceilings", *NAMES[2:-1], "profile", "train")
    return [name for name in order if name in wanted]


def chosen(only: str, known: Iterable[str]) -> set[str]:
    """Return the parts of --only.

    Raises:
        ValueError: a name is unknown.
    """
    wanted = set(only.split(","))
    if unknown := sorted(wanted - set(known)):
        raise ValueError(f"--only: unknown part {unknown[0]!r}; known: {', '.join(known)}")
    return wanted
