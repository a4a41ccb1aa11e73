"""Evaluation straight from image files: the decoded set's batches, and broken files named. Needs no DALI."""

import pytest
import torch

from lgfast.data import EvalLoader, load_dataset, load_files
from lgfast.spec.augment import AugmentSpec
from tests.data.layouts import write_folder

SPEC = AugmentSpec(image_size=28, teacher_size=4)


@pytest.fixture
def root(tmp_path):
    write_folder(tmp_path / "tree", test=4)
    return tmp_path / "tree"


@pytest.mark.parametrize("rank", [0, 1])
def test_batches_equal_those_of_the_decoded_set(root, tmp_path, rank):
    sets = load_files("folder", root, "test"), load_dataset("folder", root, "test", cache_dir=tmp_path)
    loaders = [EvalLoader(images, SPEC, batch_size=3, rank=rank, world=2) for images in sets]
    assert [len(loader) for loader in loaders] == [2, 2]
    for _ in range(2):
        for ours, theirs in zip(*loaders, strict=True):
            assert ours.teacher_images is None
            for name in ("images", "labels", "indices"):
                assert torch.equal(getattr(ours, name), getattr(theirs, name))


def test_broken_file_is_named(root):
    (root / "test" / "dog" / "1.png").write_bytes(b"not an image")
    with pytest.raises(ValueError, match=r"1\.png: cannot be decoded .* data\.skip_broken"):
        list(EvalLoader(load_files("folder", root, "test"), SPEC))
    with pytest.warns(UserWarning, match=r"skipped 1 broken images: .*1\.png"):
        files = load_files("folder", root, "test", skip_broken=True)
    assert sum(len(batch.labels) for batch in EvalLoader(files, SPEC)) == len(files) == 7


def test_subsets_follow_the_decoded_set(root, tmp_path):
    files, decoded = load_files("folder", root), load_dataset("folder", root, cache_dir=tmp_path)
    chosen = torch.tensor([4, 0, 2])
    part = files.subset(chosen)
    assert part.paths == [files.paths[index] for index in chosen.tolist()]
    assert part.content_hash not in (files.content_hash, files.subset(chosen.flip(0)).content_hash)
    assert files.limit(4).labels.tolist() == decoded.limit(4).labels.tolist()
    names = ("cow", *reversed(files.class_names))
    assert files.relabel(names).labels.tolist() == decoded.relabel(names).labels.tolist() == [2, 2, 2, 1, 1, 1]
    with pytest.raises(ValueError, match=r"subset: indices must lie in \[0, 6\)"):
        files.subset(torch.tensor([6]))
