"""Write a run's config.yaml whole, and refuse it where somebody changed it."""

from __future__ import annotations

from hashlib import blake2b
from pathlib import Path
from typing import Any

from lgfast.config import FREE_ON_RESUME, Config, dump_yaml, load_yaml
from lgfast.records.files import write_text

FILE = "config.yaml"
MARK = "# digest of the lines above: "
LAST_KEY = "tensorboard:"  # the last key in files of older versions, which have no digest
# Keys that decide no result: those that a resumed run may change, and those that the images' hash covers.
WITHOUT_EFFECT = (
    *FREE_ON_RESUME,
    *(f"data.{name}" for name in ("loader", "eval_batch_size", "skip_broken")),
    *(f"data.{name}" for name in ("exif_orientation", "stored_side", "test_fraction", "max_pixels")),
)


def write_config(run_dir: Path, config: Config) -> None:
    text = dump_yaml(config)
    write_text(run_dir / FILE, f"{text}{MARK}{digest_of(text)}\n")


def read_config(run_dir: Path) -> Config:
    """Read the configuration of a run's folder.

    Raises:
        ValueError: it is damaged, cut off or changed since it was written; the file is named.
        OSError: the file is missing or cannot be read.
    """
    path = run_dir / FILE
    content = path.read_text(encoding="utf-8", errors="replace")
    text, mark, digest = content.rpartition(MARK)
    if mark and digest.strip() != digest_of(text):
        raise ValueError(
            f"{path} is damaged or was edited: it is not as the run wrote it; take it from a copy, or start a new run "
            "(what may change in a run is given to --resume as flags, such as --data.root)"
        )
    if not mark and LAST_KEY not in content:
        raise ValueError(f"{path} is not complete; take it from a copy, or start a new run")
    return load_yaml(path)


def digest_of(text: str) -> str:
    return blake2b(text.encode("utf-8", errors="replace"), digest_size=16).hexdigest()


def check_same_run(config: dict[str, Any], saved: dict[str, Any], source: Path) -> None:
    """Refuse to continue a run under a configuration that computes something else.

    Args:
        config: the run's configuration.
        saved: the configuration with which its weights were trained; it may lack newer keys.
        source: the file that holds `saved`.
    """
    own, before = flatten(config), flatten(saved)
    for key in sorted(own.keys() & before.keys()):
        if own[key] != before[key] and not key.startswith(WITHOUT_EFFECT):
            raise ValueError(
                f"--resume: {key} is {own[key]!r} now, and was {before[key]!r} when {source} was saved; put it back, "
                "or start a new run"
            )


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten a nested mapping: {"optim": {"lr": 1}} becomes {"optim.lr": 1}."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
