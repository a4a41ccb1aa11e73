"""The parts of a short time on a GPU, the most important first: of a first call, and of one that goes on after it.

Commands are as in parts.py, each with a limit of its own. `{switches}` is the file that names the kernels to go on
without, `{stamp}` the file that says from which sources the libraries were built, `{table}` the module that lists the
kernels to try.
"""

from __future__ import annotations

from benchmarks.kernels.table import KERNELS
from benchmarks.suite.parts import DRY, ROW, RUN, TRAIN, Command

SMOKE = "--switches {switches} --out {results} --table {table}"
VARIANTS = list(
    dict.fromkeys(name for kernel in KERNELS.items() if kernel[1].fallback for name in (kernel[1].fallback, kernel[0]))
)
SLOW = "short_attention_bwd_resident,short_attention_fwd,augment,feature_mse"
SMALL = f"{SLOW},short_attention_bwd_streamed,flat_adamw"
TESTS = "tests/ops/test_short_attention_gpu.py tests/ops/test_feature_mse_cuda.py tests/ops/test_augment_cuda.py"
DIGITS = f"--recipe digits {RUN} --teacher digits-resnet8"


def build(minutes: float) -> Command:
    return Command("benchmarks.suite.build", "--stamp {stamp}", minutes=minutes, limit=2.5)


def step(batch: int) -> Command:
    options = f"--providers amp,lgfast --batch {batch} --guidance on --no-stages --rounds 20"
    return Command("benchmarks.bench_train_step", f"{options} {ROW}", minutes=0.5, limit=1.5)


def attention(providers: str) -> Command:
    options = f"--providers {providers} --shapes deit_tiny --batches 256 --rounds 30"
    return Command("benchmarks.bench_short_attention", f"{options} {ROW}", minutes=0.5, limit=1.25)


def feature_mse(batch: int) -> Command:
    options = f"--providers torch,lgfast --models deit_tiny --dtypes bfloat16 --batch {batch} --rounds 30"
    return Command("benchmarks.bench_feature_mse", f"{options} {ROW}", minutes=0.25, limit=0.75)


def augment() -> Command:
    options = "--providers lgfast,torchvision --batches 128,512 --rounds 5"
    return Command("benchmarks.bench_augment", f"{options} {ROW}", minutes=0.25, limit=0.75)


def optimizer() -> Command:
    options = "--providers lgfast,fused --models deit_tiny_patch16_224 --rounds 50"
    return Command("benchmarks.bench_optimizer", f"{options} {ROW}", minutes=0.25, limit=0.75)


def train(recipe: str, limit: float = 0) -> Command:
    """Return the command that trains the first epochs. A run that is stopped saves, and continues in a later call."""
    options = f"--recipe {recipe} {TRAIN}"
    return Command("benchmarks.suite.train", options, minutes=0.25, limit=limit, needs=("data",))


FIRST: dict[str, list[Command]] = {
    "build": [build(minutes=1)],
    "smoke": [Command("benchmarks.smoke", SMOKE, minutes=1, limit=2.5)],
    "ceilings": [Command("benchmarks.ceilings", "--rounds 10 --out {results}", minutes=0.2, limit=0.5)],
    "step": [step(128), step(256)],
    "attention": [attention("lgfast,sdpa,flash,cudnn")],
    "feature_mse": [feature_mse(256), feature_mse(128)],
    "augment": [augment()],
    "optimizer": [optimizer()],
    "profile": [
        Command("benchmarks.profile_step", f"--shape deit_tiny_224 --batch 128 {ROW}", minutes=0.5, limit=1),
    ],
}
SECOND: dict[str, list[Command]] = {
    "build": [build(minutes=0.1)],  # does nothing if the libraries were brought along
    "counters": [Command("benchmarks.counters", f"--kernels {SLOW} --out {{results}}", minutes=0.75, limit=1.5)],
    "variants": [
        Command("benchmarks.smoke", f"--kernels {','.join(VARIANTS)} --out {{results}}", minutes=0.5, limit=0.75)
    ],
    "sanitizer": [Command("benchmarks.sanitizer", f"--kernels {SMALL}", minutes=0.75, limit=1.25)],
    "tests": [
        Command("benchmarks.suite.gpu_tests", f"--seconds 70 --junit {{out}}/tests {TESTS}", minutes=0.75, limit=1.25)
    ],
    "digits": [Command("benchmarks.suite.train", DIGITS, minutes=0.5, limit=1)],
    "sweep": [Command("benchmarks.bench_sweep", "--students 1,4 --out {results}", minutes=0.5, limit=1)],
    "train": [
        train("cifar100-resnet56", limit=0.75),
        train("cifar100-deit-ti-base"),
    ],
}

# What a rehearsal runs on the CPU, with tiny shapes.
DRY_SMOKE = f"{SMOKE} --device cpu --seconds 3"
DRY_FIRST = {
    name: [Command("benchmarks.smoke", DRY_SMOKE, limit=3)] if name == "smoke" else DRY[name] for name in FIRST
}
DRY_SECOND = {name: DRY[name] for name in ("build", "tests", "digits", "sweep")}
