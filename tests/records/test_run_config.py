"""A run's configuration is read as it was written, or refused."""

import random

import pytest

from lgfast.config import Config, dump_yaml, load_recipe, replace, to_dict
from lgfast.records.run_config import MARK, check_same_run, read_config, write_config
from tests.damage import damaged

CONFIG = replace(
    load_recipe("cifar100-deit-ti-guided"), {"run_dir": "runs/a", "optim.lr": 3e-4, "data.root": "d\udce9"}
)


@pytest.fixture
def path(tmp_path):
    write_config(tmp_path, CONFIG)
    return tmp_path / "config.yaml"


def without_digest(content):
    return content[: content.index(MARK)]


def test_what_is_written_is_read(path):
    assert read_config(path.parent) == CONFIG


def test_a_file_of_an_older_version_is_read(path):
    path.write_text(without_digest(path.read_text()))
    assert read_config(path.parent) == CONFIG


@pytest.mark.parametrize("has_digest", [True, False])
def test_a_file_that_was_cut_is_refused_wherever_that_was(path, has_digest):
    content = path.read_text() if has_digest else without_digest(path.read_text())
    ends = [place for place, letter in enumerate(content) if letter == "\n"][:-1]
    if has_digest:
        ends = ends[:-1]  # then it is one of an older version
    assert len(ends) > 50
    for end in (0, *ends):
        path.write_text(content[: end + 1] if end else "")
        with pytest.raises(ValueError, match=r"config\.yaml is not complete; take it from a copy"):
            read_config(path.parent)


def test_a_damaged_file_is_never_taken_for_another(path):
    content, generator, refused = path.read_bytes(), random.Random(0), 0
    for _ in range(300):
        path.write_bytes(damaged(content, generator))
        try:
            assert read_config(path.parent) == CONFIG  # where the line of the digest alone was hit
        except ValueError:
            refused += 1
    assert refused > 250


def test_an_edited_file_is_refused_with_the_way_to_change_it(path):
    path.write_text(path.read_text().replace("batch_size: 128", "batch_size: 12"))
    with pytest.raises(ValueError, match=r"was edited: .* given to --resume as flags"):
        read_config(path.parent)


def test_a_run_is_not_continued_as_another(path):
    saved = to_dict(CONFIG)
    del saved["guidance"]["transform"]  # of a version that did not have the key
    check_same_run(
        to_dict(replace(CONFIG, {"device": "cpu", "data.loader": "timm", "log.every_steps": 9})), saved, path
    )
    message = r"--resume: optim\.lr is 0\.1 now, and was 0\.0003 when .*config\.yaml was saved; put it back"
    with pytest.raises(ValueError, match=message):
        check_same_run(to_dict(replace(CONFIG, {"optim.lr": 0.1})), saved, path)


def test_any_configuration_ends_with_the_key_that_shows_it_is_whole():
    """By which a file of an older version, which has no digest, is known to be complete."""
    assert dump_yaml(Config()).splitlines()[-1].startswith("  tensorboard:")
