"""The keys of the paper's code: what each is where a file is silent, and what becomes of it here.

Source: github.com/lkhl/tiny-transformers, commit d2165f7.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Carried:
    """The value goes to a key of lgfast as it is."""

    to: str


@dataclass(frozen=True)
class Fixed:
    """The default alone has an equivalent."""


@dataclass(frozen=True)
class Dropped:
    """The key changes no result, for the reason given."""

    why: str


@dataclass(frozen=True)
class Read:
    """`lgfast.config.pycls` reads the key, and sets this key of lgfast from it, if one is named."""

    to: str = ""


class OfNetwork:
    """Describes the network: `Network` says what it must be."""


Meaning = Carried | Fixed | Dropped | Read | OfNetwork

SPEED = Dropped("speed and machine only")
LOGGING = Dropped("what its log shows")
LAUNCH = Dropped("how its processes start; here torchrun says it")
BOTTLENECK = Dropped("of bottleneck blocks, which this CNN does not have")
STEPS = Dropped("of the schedule in steps, which the paper's code does not have either")

# key -> (value where a file is silent, meaning)
KEYS: dict[str, tuple[Any, Meaning]] = {
    "DISTILLATION.ENABLE_INTER": (False, Read()),
    "DISTILLATION.INTER_TRANSFORM": ("linear", Carried("guidance.transform")),
    "DISTILLATION.INTER_LOSS": ("l2", Dropped("the paper's code never reads it")),
    "DISTILLATION.INTER_TEACHER_INDEX": ((), Read("teacher.stages")),
    "DISTILLATION.INTER_STUDENT_INDEX": ((), Carried("guidance.student_layers")),
    "DISTILLATION.INTER_WEIGHT": (2.5, Carried("guidance.weight")),
    "DISTILLATION.ENABLE_LOGIT": (False, Read()),
    "DISTILLATION.LOGIT_LOSS": ("soft", Carried("distill.mode")),
    "DISTILLATION.LOGIT_TEMP": (1.0, Carried("distill.temperature")),
    "DISTILLATION.LOGIT_WEIGHT": (0.5, Carried("distill.weight")),
    "DISTILLATION.TEACHER_MODEL": ("ResNet", Fixed()),
    "DISTILLATION.TEACHER_WEIGHTS": (None, Read("teacher.checkpoint")),
    "DISTILLATION.TEACHER_IMG_SIZE": (32, Carried("augment.teacher_size")),
    "DISTILLATION.OFFLINE": (False, Read("teacher.targets")),
    "DISTILLATION.FEATURE_FILE": (None, Dropped("the features are computed anew from the teacher's weights")),
    "MODEL.TYPE": ("ResNet", Read("model.name")),
    "MODEL.IMG_SIZE": (224, Carried("augment.image_size")),
    "MODEL.IN_CHANNELS": (3, Fixed()),
    "MODEL.NUM_CLASSES": (100, Read()),
    "MODEL.LOSS_FUN": ("cross_entropy", Fixed()),
    "CNN.DEPTH": (56, Read()),
    "CNN.ACTIVATION_FUN": ("relu", Fixed()),
    "CNN.ACTIVATION_INPLACE": (True, SPEED),
    "CNN.BN_EPS": (1e-5, Fixed()),
    "CNN.BN_MOMENTUM": (0.1, Fixed()),
    "CNN.ZERO_INIT_FINAL_BN_GAMMA": (False, Fixed()),
    "RESNET.TRANS_FUN": ("basic_transform", Fixed()),
    "RESNET.NUM_GROUPS": (1, BOTTLENECK),
    "RESNET.WIDTH_PER_GROUP": (64, BOTTLENECK),
    "RESNET.STRIDE_1X1": (True, BOTTLENECK),
    "TRANSFORMER.PATCH_SIZE": (None, OfNetwork()),
    "TRANSFORMER.PATCH_STRIDE": (None, OfNetwork()),
    "TRANSFORMER.PATCH_PADDING": (None, OfNetwork()),
    "TRANSFORMER.HIDDEN_DIM": (None, OfNetwork()),
    "TRANSFORMER.DEPTH": (None, OfNetwork()),
    "TRANSFORMER.NUM_HEADS": (None, OfNetwork()),
    "TRANSFORMER.MLP_RATIO": (None, OfNetwork()),
    "TRANSFORMER.LN_EPS": (1e-6, OfNetwork()),
    "TRANSFORMER.DROP_RATE": (None, OfNetwork()),
    "TRANSFORMER.DROP_PATH_RATE": (None, OfNetwork()),
    "TRANSFORMER.ATTENTION_DROP_RATE": (None, OfNetwork()),
    "T2T.TOKEN_DIM": (64, OfNetwork()),
    "T2T.KERNEL_SIZE": ((7, 3, 3), OfNetwork()),
    "T2T.STRIDE": ((4, 2, 2), OfNetwork()),
    "T2T.PADDING": ((2, 1, 1), OfNetwork()),
    "PIT.STRIDE": (8, OfNetwork()),
    "PVT.SR_RATIO": ((8, 4, 2, 1), OfNetwork()),
    "CONVIT.LOCAL_LAYERS": (10, OfNetwork()),
    "CONVIT.LOCALITY_STRENGTH": (1.0, OfNetwork()),
    "CVT.WITH_CLS_TOKEN": ((False, False, True), OfNetwork()),
    "CVT.QKV_PROJ_METHOD": (("dw_bn", "dw_bn", "dw_bn"), OfNetwork()),
    "CVT.KERNEL_QKV": ((3, 3, 3), OfNetwork()),
    "CVT.STRIDE_KV": ((2, 2, 2), OfNetwork()),
    "CVT.STRIDE_Q": ((1, 1, 1), OfNetwork()),
    "CVT.PADDING_KV": ((1, 1, 1), OfNetwork()),
    "CVT.PADDING_Q": ((1, 1, 1), OfNetwork()),
    "OPTIM.OPTIMIZER": ("sgd", Read("optim.name")),
    "OPTIM.BASE_LR": (0.1, Carried("optim.lr")),
    "OPTIM.MIN_LR": (0.0, Carried("optim.min_lr")),
    "OPTIM.HEAD_LR_RATIO": (1.0, Fixed()),
    "OPTIM.LR_POLICY": ("cos", Fixed()),
    "OPTIM.STEPS": ((), STEPS),
    "OPTIM.LR_MULT": (0.1, STEPS),
    "OPTIM.MAX_EPOCH": (200, Carried("epochs")),
    "OPTIM.MOMENTUM": (0.9, Carried("optim.momentum")),
    "OPTIM.DAMPENING": (0.0, Fixed()),
    "OPTIM.NESTEROV": (True, Fixed()),
    "OPTIM.BETA1": (0.9, Fixed()),
    "OPTIM.BETA2": (0.999, Fixed()),
    "OPTIM.WEIGHT_DECAY": (5e-4, Carried("optim.weight_decay")),
    "OPTIM.WARMUP_FACTOR": (0.1, Carried("optim.warmup_factor")),
    "OPTIM.WARMUP_EPOCHS": (0, Carried("optim.warmup_epochs")),
    "OPTIM.EMA_ALPHA": (1e-5, Dropped("of the moving average, which EMA_UPDATE_PERIOD 0 turns off")),
    "OPTIM.EMA_UPDATE_PERIOD": (0, Fixed()),
    "TRAIN.DATASET": ("", Read("data.dataset")),
    "TRAIN.SPLIT": ("train", Fixed()),
    "TRAIN.BATCH_SIZE": (128, Carried("data.batch_size")),
    "TRAIN.AUTO_RESUME": (True, Dropped("--resume continues a run")),
    "TRAIN.WEIGHTS": ("", Fixed()),
    "TRAIN.MIXED_PRECISION": (False, Read("precision")),
    "TRAIN.LABEL_SMOOTHING": (0.0, Carried("optim.label_smoothing")),
    "TRAIN.MIXUP_ALPHA": (0.0, Carried("augment.mixup_alpha")),
    "TRAIN.CUTMIX_ALPHA": (0.0, Carried("augment.cutmix_alpha")),
    "TRAIN.STRONG_AUGMENTATION": (True, Read("augment.weak")),
    "TEST.DATASET": ("", Read()),
    "TEST.SPLIT": ("val", Read()),
    "TEST.BATCH_SIZE": (200, Carried("data.eval_batch_size")),
    "TEST.WEIGHTS": ("", Dropped("of its test mode; here python -m lgfast.evaluate FILE")),
    "DATA_LOADER.NUM_WORKERS": (8, Carried("data.workers")),
    "DATA_LOADER.PIN_MEMORY": (True, SPEED),
    "CUDNN.BENCHMARK": (True, SPEED),
    "PREC_TIME.WARMUP_ITER": (3, SPEED),
    "PREC_TIME.NUM_ITER": (30, SPEED),
    "LAUNCH.MODE": ("local", LAUNCH),
    "LAUNCH.MAX_RETRY": (3, LAUNCH),
    "LAUNCH.NAME": ("pycls_job", LAUNCH),
    "LAUNCH.COMMENT": ("", LAUNCH),
    "LAUNCH.CPUS_PER_GPU": (10, LAUNCH),
    "LAUNCH.MEM_PER_GPU": (60, LAUNCH),
    "LAUNCH.PARTITION": ("devlab", LAUNCH),
    "LAUNCH.GPU_TYPE": ("volta", LAUNCH),
    "LAUNCH.TIME_LIMIT": (4200, LAUNCH),
    "LAUNCH.EMAIL": ("", LAUNCH),
    "DESC": ("", LOGGING),
    "VERBOSE": (True, LOGGING),
    "NUM_GPUS": (1, LAUNCH),
    "MAX_GPUS_PER_NODE": (8, LAUNCH),
    "OUT_DIR": (None, Read("name")),
    "CFG_DEST": ("config.yaml", LOGGING),
    "RNG_SEED": (1, Carried("seed")),
    "LOG_DEST": ("stdout", LOGGING),
    "LOG_PERIOD": (10, Dropped("what its log shows; here log.every_steps")),
    "DIST_BACKEND": ("nccl", LAUNCH),
    "HOST": ("localhost", LAUNCH),
    "PORT_RANGE": ((10000, 65000), LAUNCH),
    "DOWNLOAD_CACHE": ("/tmp/pycls-download-cache", SPEED),
}
DEFAULTS = {key: default for key, (default, _) in KEYS.items()}


@dataclass(frozen=True)
class Network:
    """A student of the paper's code.

    Attributes:
        recipe: stem of the recipes that hold lgfast's equivalent.
        own: keys that its code reads -> values of that equivalent.
        carried: those among them that a key of lgfast changes.
    """

    recipe: str
    own: Mapping[str, Any]
    carried: Mapping[str, str]


def transformer(**values: Any) -> dict[str, Any]:
    """The TRANSFORMER section of a network, with what all networks share."""
    shared = {"LN_EPS": 1e-6, "DROP_RATE": 0.0, "ATTENTION_DROP_RATE": 0.0, "DROP_PATH_RATE": 0.1}
    return {f"TRANSFORMER.{name}": value for name, value in (shared | values).items()}


def section(name: str) -> dict[str, Any]:
    """The keys of a network's own section, as they are by default."""
    return {key: default for key, default in DEFAULTS.items() if key.startswith(f"{name}.")}


RATE = {"TRANSFORMER.DROP_PATH_RATE": "model.drop_path_rate"}
PATCH = {"TRANSFORMER.PATCH_SIZE": "model.patch_size"}
SHAPE = {
    "TRANSFORMER.HIDDEN_DIM": "model.embed_dim",
    "TRANSFORMER.DEPTH": "model.depth",
    "TRANSFORMER.NUM_HEADS": "model.num_heads",
}
PVT = {"HIDDEN_DIM": (64, 128, 320, 512), "DEPTH": (2, 2, 2, 2), "NUM_HEADS": (1, 2, 5, 8), "MLP_RATIO": (8, 8, 4, 4)}
NETWORKS: dict[str, tuple[Network, ...]] = {
    "DeiT": (
        Network(
            "cifar100-deit-ti",
            transformer(PATCH_SIZE=16, HIDDEN_DIM=192, DEPTH=12, NUM_HEADS=3, MLP_RATIO=4),
            RATE | PATCH | SHAPE,
        ),
    ),
    "T2TViT": (
        Network(
            "cifar100-t2t-vit-7",
            transformer(HIDDEN_DIM=256, DEPTH=7, NUM_HEADS=4, MLP_RATIO=2) | section("T2T"),
            RATE | SHAPE,
        ),
        Network(
            "cifar100-t2t-vit-14",
            transformer(HIDDEN_DIM=384, DEPTH=14, NUM_HEADS=6, MLP_RATIO=3) | section("T2T"),
            RATE | SHAPE,
        ),
    ),
    "PiT": (
        Network(
            "cifar100-pit-ti",
            transformer(PATCH_SIZE=16, HIDDEN_DIM=(64, 128, 256), DEPTH=(2, 6, 4), NUM_HEADS=(2, 4, 8), MLP_RATIO=4)
            | section("PIT"),
            RATE | PATCH,
        ),
    ),
    "PVT": (Network("cifar100-pvt-ti", transformer(PATCH_SIZE=(4, 2, 2, 2), **PVT) | section("PVT"), RATE),),
    "PVTv2": (
        Network(
            "cifar100-pvtv2-b0",
            transformer(PATCH_SIZE=(7, 3, 3, 3), PATCH_STRIDE=(4, 2, 2, 2), **PVT | {"HIDDEN_DIM": (32, 64, 160, 256)})
            | section("PVT"),
            RATE,
        ),
    ),
    "ConViT": (
        Network(
            "cifar100-convit-ti",
            transformer(PATCH_SIZE=16, HIDDEN_DIM=192, DEPTH=12, NUM_HEADS=4, MLP_RATIO=4) | section("CONVIT"),
            RATE | PATCH | SHAPE,
        ),
    ),
    "CvT": (
        Network(
            "cifar100-cvt-13",
            transformer(
                PATCH_SIZE=(7, 3, 3),
                PATCH_STRIDE=(4, 2, 2),
                PATCH_PADDING=(2, 1, 1),
                HIDDEN_DIM=(64, 192, 384),
                DEPTH=(1, 2, 10),
                NUM_HEADS=(1, 3, 6),
                MLP_RATIO=(4, 4, 4),
                LN_EPS=1e-5,
                DROP_RATE=(0.0, 0.0, 0.0),
                DROP_PATH_RATE=(0.0, 0.0, 0.1),
                ATTENTION_DROP_RATE=(0.0, 0.0, 0.0),
            )
            | section("CVT"),
            RATE,
        ),
    ),
}
# DEPTH of a CNN -> its name here
CNNS = {18: "resnet18"} | {depth: f"cifar_resnet{depth}" for depth in (8, 20, 32, 44, 56, 110)}
# TRAIN.DATASET -> its name here, its classes, and the split that the paper's code tests on
DATASETS = {
    "cifar100": ("cifar100", 100, "test"),
    "flowers": ("flowers102", 102, "test"),
    "tiny_imagenet": ("tiny_imagenet", 200, "val"),
    "chaoyang": ("chaoyang", 4, "test"),
}
# Key of lgfast -> the key of the paper's code that it comes from
ORIGINS = {meaning.to: key for key, (_, meaning) in KEYS.items() if isinstance(meaning, (Carried, Read)) and meaning.to}
ORIGINS |= {ours: key for key, ours in (RATE | PATCH | SHAPE).items()}
