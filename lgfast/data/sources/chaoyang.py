"""Chaoyang, colon tissue (https://bupt-ai-cz.github.io/HSA-NRL/); train.json and test.json list its images."""

import json
from pathlib import Path
from typing import Any

from lgfast.data.read import read_text
from lgfast.data.sources.source import Source, check_labels, file_source, find_folder, require_files

CLASS_NAMES = ("normal", "serrated", "adenocarcinoma", "adenoma")
HELP = (
    "request it at https://bupt-ai-cz.github.io/HSA-NRL/ and unpack it; expected train.json, test.json "
    "and the images they name, in train/ and test/"
)


def chaoyang_source(root: Path, split: str) -> Source:
    """The split of Chaoyang in root/chaoyang."""
    folder = find_folder(root, ("chaoyang",), f"{split}.json", HELP)
    index = folder / f"{split}.json"
    entries = load_entries(index)
    images, labels = [folder / entry["name"] for entry in entries], [entry["label"] for entry in entries]
    check_labels(labels, len(CLASS_NAMES), index)
    require_files(images, HELP)
    return file_source(f"chaoyang-{split}", folder, images, labels, CLASS_NAMES, lists=[index])


def load_entries(index: Path) -> list[dict[str, Any]]:
    try:
        entries = json.loads(read_text(index))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{index}: truncated or damaged JSON ({error}); {HELP}") from error
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{index}: expected a list of images, got {type(entries).__name__}; {HELP}")
    for number, entry in enumerate(entries):
        if not is_sample(entry):
            raise ValueError(f"{index}: entry {number} must have a text 'name' and an integer 'label', got {entry}")
    return entries


def is_sample(entry: Any) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("name"), str) and isinstance(entry.get("label"), int)
