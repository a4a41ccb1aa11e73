"""Write the files that show what a network gets wrong: scores, classes, confusion, the most confident mistakes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lgfast.assembly.images import SplitImages, load_images
from lgfast.config import Config
from lgfast.data.decode import decode_image
from lgfast.data.image_set import ImageSet, several
from lgfast.data.rendering import rendered
from lgfast.records.answers import Answers
from lgfast.records.files import atomic_path, write_text
from lgfast.reports.confusion import draw_confusion
from lgfast.reports.contact_sheet import contact_sheet
from lgfast.reports.scores import Score, class_rows, confidence, confusion_matrix, mistakes, scores
from lgfast.reports.table import write_csv

SHOWN = 36  # the number of mistakes on the contact sheet
TEST = "test"  # this folder lies in the run's folder
FILES = "scores.json, classes.csv, confusion.csv and .png, mistakes.csv and .png, logits.npz"


def write_answer_files(answers: Answers, images: SplitImages | None, folder: Path) -> dict[str, Score]:
    """Write FILES into the folder; without confusion.png where matplotlib is missing.

    Args:
        images: the images that the answers are for, in order. None, where they are not at hand, leaves mistakes.png.
    """
    found = scores(answers)
    told = {"images": len(answers.labels), "of": answers.about}
    told |= {name: score._asdict() for name, score in found.items()}
    write_text(folder / "scores.json", json.dumps(told, indent=2) + "\n")
    write_csv(folder / "classes.csv", class_rows(answers))
    write_confusion(answers, folder)
    worst = mistakes(answers, len(answers.labels))
    columns = ["image", "file", "class", "named", "probability", "own_probability"]
    write_csv(folder / "mistakes.csv", [mistake(answers, image) for image in worst], columns)
    if images is not None:
        write_mistakes(answers, images, worst[:SHOWN], folder / "mistakes.png")
    return found


def answered_images(answers: Answers, config: Config) -> SplitImages | None:
    """Load the test images that a run's answers are for; None where they are gone or have changed."""
    try:
        images = load_images(config, "test")
    except (ValueError, OSError):
        return None
    return images if images.labels.tolist() == answers.labels.tolist() else None


def write_confusion(answers: Answers, folder: Path) -> None:
    if answers.is_multi_label:  # no class is named in place of another
        for name in ("confusion.csv", "confusion.png"):
            (folder / name).unlink(missing_ok=True)
        return
    matrix = confusion_matrix(answers)
    rows = [
        {"true class": name} | dict(zip(answers.class_names, row, strict=True))
        for name, row in zip(answers.class_names, matrix.tolist(), strict=True)
    ]
    write_csv(folder / "confusion.csv", rows)
    try:
        with atomic_path(folder / "confusion.png") as temporary, temporary.open("wb") as file:
            draw_confusion(matrix, answers.class_names, file)
    except ImportError:  # matplotlib, which the extra [plot] brings
        pass


def mistake(answers: Answers, image: int) -> dict[str, Any]:
    """Return the row of mistakes.csv for one image; of several classes, own_probability is that of the least likely."""
    own, named = answers.are_there[image], answers.are_named[image]
    row = answers.probabilities[image]
    return {
        "image": image,
        "file": answers.files[image] if answers.files else "",
        "class": several(answers.class_names, own),
        "named": several(answers.class_names, named),
        "probability": round(float(confidence(answers)[image]), 6),
        "own_probability": round(float(row[own].min()), 6) if own.any() else "",
    }


def write_mistakes(answers: Answers, images: SplitImages, worst: Sequence[int], path: Path) -> None:
    """Write the contact sheet; write none where the network made no mistake."""
    if not worst:
        path.unlink(missing_ok=True)
        return
    told = [mistake(answers, image) for image in worst]
    captions = [[f"{row['named']} {100 * row['probability']:.0f} %", f"is {row['class']}"] for row in told]
    sheet = contact_sheet([picture(images, image) for image in worst], captions)
    with atomic_path(path) as temporary:
        sheet.save(temporary, "PNG")


def picture(images: SplitImages, index: int) -> np.ndarray:
    """Return one image as uint8 [h, w, 3]."""
    if isinstance(images, ImageSet):
        return rendered(images.image(index))
    return decode_image(images.paths[index], images.decoding)
