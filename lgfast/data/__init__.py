"""Reads data sets and loads batches: files -> uint8 images -> augmented batches."""

from lgfast.data.batch import Batch
from lgfast.data.datasets import DATASET_NAMES, load_dataset
from lgfast.data.decode import Decoding
from lgfast.data.eval_loader import EvalLoader
from lgfast.data.file_set import FileSet, load_files
from lgfast.data.image_set import ImageSet, split_holdout
from lgfast.data.loaders import build_train_loader
from lgfast.data.permutation import epoch_permutation
from lgfast.data.read import UnreadableError

__all__ = [
    "DATASET_NAMES",
    "Batch",
    "Decoding",
    "EvalLoader",
    "FileSet",
    "ImageSet",
    "UnreadableError",
    "build_train_loader",
    "epoch_permutation",
    "load_dataset",
    "load_files",
    "split_holdout",
]
