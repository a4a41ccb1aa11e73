"""Configuration: sections (frozen dataclasses), dotted keys that override them, YAML recipes."""

from lgfast.config.checks import get
from lgfast.config.keys import (
    FREE_ON_RESUME,
    check_key,
    convert,
    digest,
    from_dict,
    replace,
    split_assignment,
    to_dict,
    valid_keys,
)
from lgfast.config.recipes import dump_yaml, load_recipe, load_yaml, published_top1, recipe_names
from lgfast.config.sections import (
    Config,
    DataConfig,
    DistillConfig,
    EvalConfig,
    GuidanceConfig,
    LogConfig,
    ModelConfig,
    OptimConfig,
    StepConfig,
    TeacherConfig,
)

__all__ = [
    "FREE_ON_RESUME",
    "Config",
    "DataConfig",
    "DistillConfig",
    "EvalConfig",
    "GuidanceConfig",
    "LogConfig",
    "ModelConfig",
    "OptimConfig",
    "StepConfig",
    "TeacherConfig",
    "check_key",
    "convert",
    "digest",
    "dump_yaml",
    "from_dict",
    "get",
    "load_recipe",
    "load_yaml",
    "published_top1",
    "recipe_names",
    "replace",
    "split_assignment",
    "to_dict",
    "valid_keys",
]
