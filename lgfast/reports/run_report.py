"""Everything that a run's folder says of it at its end: what its network gets wrong, and the page."""

from __future__ import annotations

import contextlib
from pathlib import Path

from lgfast.records.answers import read_answers
from lgfast.records.run_config import read_config
from lgfast.reports.answers import TEST, answered_images, write_answer_files
from lgfast.reports.run_attention import FILE as ATTENTION
from lgfast.reports.run_attention import measure_attention, write_attention
from lgfast.reports.run_page import write_run_page


def write_run_report(run_dir: Path) -> Path:
    """Write RUN/test/ from the logits that the run's test kept, and RUN/index.html, which is returned.

    Raises:
        ValueError: a file of the run is damaged; it is named.
        OSError: the folder is no run's, or cannot be written.
    """
    config, answers = read_config(run_dir), read_answers(run_dir / TEST)
    if answers is not None:
        images = answered_images(answers, config)
        write_answer_files(answers, images, run_dir / TEST)
        if images is not None:
            with contextlib.suppress(ValueError):  # a network without attention that can be read, such as a CNN
                write_attention(measure_attention(run_dir, images), run_dir / TEST / ATTENTION)
    return write_run_page(run_dir)
