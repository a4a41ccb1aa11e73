"""The 19 configurations of the paper's code, as nested dictionaries, and the whole file that it writes for a run."""

import copy

from lgfast.config.pycls_keys import DEFAULTS

RUN = {
    "TRAIN": {"DATASET": "cifar100", "SPLIT": "train", "BATCH_SIZE": 128},
    "TEST": {"DATASET": "cifar100", "SPLIT": "test", "BATCH_SIZE": 200},
    "NUM_GPUS": 1,
    "DATA_LOADER": {"NUM_WORKERS": 4},
    "CUDNN": {"BENCHMARK": False},
}
ADAMW = {
    "OPTIMIZER": "adamw", "BASE_LR": 5e-4, "MIN_LR": 5e-6, "LR_POLICY": "cos", "MAX_EPOCH": 300,
    "WEIGHT_DECAY": 0.05, "WARMUP_FACTOR": 0.001, "WARMUP_EPOCHS": 20,
}  # fmt: skip
SGD = {
    "BASE_LR": 0.1, "LR_POLICY": "cos", "MAX_EPOCH": 300, "MOMENTUM": 0.9, "NESTEROV": True, "WEIGHT_DECAY": 5e-4,
}  # fmt: skip
RATES = {"DROP_RATE": 0.0, "DROP_PATH_RATE": 0.1, "ATTENTION_DROP_RATE": 0.0}
VIT = {"PATCH_SIZE": 16, "HIDDEN_DIM": 192, "DEPTH": 12, "NUM_HEADS": 3, "MLP_RATIO": 4} | RATES
T2T = {"TOKEN_DIM": 64, "KERNEL_SIZE": [7, 3, 3], "STRIDE": [4, 2, 2], "PADDING": [2, 1, 1]}
PIT = {"PATCH_SIZE": 16, "HIDDEN_DIM": [64, 128, 256], "DEPTH": [2, 6, 4], "NUM_HEADS": [2, 4, 8], "MLP_RATIO": 4}
PVT = {
    "PATCH_SIZE": [4, 2, 2, 2], "HIDDEN_DIM": [64, 128, 320, 512], "DEPTH": [2, 2, 2, 2], "NUM_HEADS": [1, 2, 5, 8],
    "MLP_RATIO": [8, 8, 4, 4],
} | RATES  # fmt: skip
PVT_V2 = PVT | {"PATCH_SIZE": [7, 3, 3, 3], "PATCH_STRIDE": [4, 2, 2, 2], "HIDDEN_DIM": [32, 64, 160, 256]}
CVT_STAGES = {
    "PATCH_SIZE": [7, 3, 3], "PATCH_STRIDE": [4, 2, 2], "PATCH_PADDING": [2, 1, 1], "HIDDEN_DIM": [64, 192, 384],
    "DEPTH": [1, 2, 10], "NUM_HEADS": [1, 3, 6], "MLP_RATIO": [4, 4, 4], "LN_EPS": 1e-5, "DROP_RATE": [0.0, 0.0, 0.0],
    "DROP_PATH_RATE": [0.0, 0.0, 0.1], "ATTENTION_DROP_RATE": [0.0, 0.0, 0.0],
}  # fmt: skip
CVT = {
    "WITH_CLS_TOKEN": [False, False, True], "QKV_PROJ_METHOD": ["dw_bn", "dw_bn", "dw_bn"], "KERNEL_QKV": [3, 3, 3],
    "STRIDE_KV": [2, 2, 2], "STRIDE_Q": [1, 1, 1], "PADDING_KV": [1, 1, 1], "PADDING_Q": [1, 1, 1],
}  # fmt: skip
SR = {"PVT": {"SR_RATIO": [8, 4, 2, 1]}}
# name of the student -> MODEL.TYPE, TRANSFORMER, sections of its own, guided blocks
STUDENTS = {
    "deit-ti": ("DeiT", VIT, {}, [0, 6, 11]),
    "t2t-7": ("T2TViT", VIT | {"HIDDEN_DIM": 256, "DEPTH": 7, "NUM_HEADS": 4, "MLP_RATIO": 2}, {"T2T": T2T}, [0, 3, 6]),
    "t2t-14": (
        "T2TViT", VIT | {"HIDDEN_DIM": 384, "DEPTH": 14, "NUM_HEADS": 6, "MLP_RATIO": 3}, {"T2T": T2T}, [0, 7, 13],
    ),
    "pit-ti": ("PiT", PIT | RATES, {"PIT": {"STRIDE": 8}}, [0, 6, 11]),
    "pvt-ti": ("PVT", PVT, SR, [0, 3, 7]),
    "pvtv2-b0": ("PVTv2", PVT_V2, SR, [0, 3, 7]),
    "convit-ti": (
        "ConViT", VIT | {"NUM_HEADS": 4}, {"CONVIT": {"LOCAL_LAYERS": 10, "LOCALITY_STRENGTH": 1.0}}, [0, 6, 11],
    ),
    "cvt-13": ("CvT", CVT_STAGES, {"CVT": CVT}, [0, 6, 11]),
}  # fmt: skip


def student_file(student, is_guided):
    kind, transformer, own, blocks = STUDENTS[student]
    file = {"MODEL": {"TYPE": kind, "NUM_CLASSES": 100}, "TRANSFORMER": transformer, **own}
    if is_guided:
        file |= {"CNN": {"DEPTH": 56}, "RESNET": {"TRANS_FUN": "basic_transform"}}
        file["DISTILLATION"] = {
            "ENABLE_INTER": True, "INTER_TRANSFORM": "linear", "INTER_TEACHER_INDEX": [0, 1, 2],
            "INTER_STUDENT_INDEX": blocks, "INTER_WEIGHT": 2.5, "TEACHER_MODEL": "ResNet",
            "TEACHER_WEIGHTS": "work_dirs/r-56_c100/model.pyth", "TEACHER_IMG_SIZE": 32,
        }  # fmt: skip
    return copy.deepcopy(file | {"OPTIM": ADAMW} | RUN)


def resnet_file(depth, image_size):
    model = {"TYPE": "ResNet", "IMG_SIZE": image_size, "NUM_CLASSES": 100}
    own = {"CNN": {"DEPTH": depth}, "RESNET": {"TRANS_FUN": "basic_transform"}, "OPTIM": SGD}
    return copy.deepcopy({"MODEL": model} | own | RUN)


def offline_file():
    file = student_file("deit-ti", True)
    file["DISTILLATION"] |= {"OFFLINE": True, "FEATURE_FILE": "temp/r-56_c100.npz"}
    return file


RECIPES = {"t2t-7": "t2t-vit-7", "t2t-14": "t2t-vit-14"}
# recipe of lgfast -> the file of the paper's code that it stands for
FILES = {
    f"cifar100-{RECIPES.get(name, name)}-{'guided' if is_guided else 'base'}": student_file(name, is_guided)
    for name in STUDENTS
    for is_guided in (False, True)
}
FILES |= {"cifar100-deit-ti-offline": offline_file()}
FILES |= {"cifar100-resnet56": resnet_file(56, 32), "cifar100-resnet18": resnet_file(18, 224)}


def flat(file):
    """Dotted keys -> values."""
    keys = {}
    for name, value in file.items():
        keys |= {f"{name}.{leaf}": v for leaf, v in value.items()} if isinstance(value, dict) else {name: value}
    return keys


def nested(keys):
    """The file with these dotted keys."""
    file = {}
    for key, value in keys.items():
        section, _, leaf = key.rpartition(".")
        node = file.setdefault(section, {}) if section else file
        node[leaf] = list(value) if isinstance(value, tuple) else value
    return file


def whole_file(file, name):
    """What the paper's code writes beside the run of a file: every key, and its folder."""
    return nested(DEFAULTS | flat(file) | {"OUT_DIR": f"work_dirs/{name}"})
