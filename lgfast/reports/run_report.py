"""Write a complete run's report: what its network gets wrong, where it looks, and the page."""

from __future__ import annotations

import contextlib
import warnings
from pathlib import Path

import torch

from lgfast.assembly.images import SplitImages
from lgfast.assembly.networks import load_trained
from lgfast.config import Config
from lgfast.records.answers import read_answers
from lgfast.records.result import read_result
from lgfast.records.run_config import read_config
from lgfast.reports.answers import TEST, answered_images, picture, write_answer_files
from lgfast.reports.attention_pictures import find_looks, one_of_each, write_looks
from lgfast.reports.run_attention import FILE as ATTENTION
from lgfast.reports.run_attention import measure_attention, write_attention
from lgfast.reports.run_features import FILE as FEATURES
from lgfast.reports.run_features import batch_of, measure_features
from lgfast.reports.run_page import write_run_page
from lgfast.reports.table import write_csv

IMAGES = 64  # test images for means over images
LOOKS = 6  # test images whose attention is shown


def write_run_report(run_dir: Path) -> Path:
    """Write RUN/test/ from the logits that the run's test kept, and RUN/index.html, which is returned.

    Raises:
        ValueError: a file of the run is damaged; it is named.
        OSError: the folder is not a run's, or cannot be written.
    """
    config, answers = read_config(run_dir), read_answers(run_dir / TEST)
    if answers is not None:
        images = answered_images(answers, config)
        write_answer_files(answers, images, run_dir / TEST)
        if images is not None:
            write_looks_inside(run_dir, config, images)
    return write_run_page(run_dir)


def write_run_report_or_warn(run_dir: Path) -> None:
    """Write the report of a complete run; a failure is one warning, since it takes nothing from the run."""
    try:
        write_run_report(run_dir)
    except (ValueError, OSError) as error:
        warnings.warn(f"the run is complete, but not its report: {error}", stacklevel=2)


def write_looks_inside(run_dir: Path, config: Config, images: SplitImages) -> None:
    """Write how far the heads look and where, and how near the features are to the teacher's. Skip what cannot be
    read."""
    few, folder = images.subset(torch.arange(min(IMAGES, len(images)))), run_dir / TEST
    with contextlib.suppress(ValueError):  # a CNN, say, has no attention that can be read
        write_attention(measure_attention(run_dir, few), folder / ATTENTION)
        chosen = one_of_each(images.strata, LOOKS)
        batch = batch_of(config, images.subset(torch.tensor(chosen)))
        names = [images.named(index) for index in chosen]
        looks = find_looks(load_trained(run_dir).model, batch)
        write_looks(looks, [picture(images, index) for index in chosen], names, folder)
    result = read_result(run_dir)
    if config.guidance.weight and result is not None and result.teacher_run:
        with contextlib.suppress(ValueError, OSError):  # the teacher or the checkpoint may be gone
            if rows := measure_features(run_dir, config, Path(result.teacher_run), few):
                write_csv(folder / FEATURES, rows)
