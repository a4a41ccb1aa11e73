"""Builds a run from its configuration: device, images, loaders, networks, teacher, run."""

import lgfast.models  # noqa: F401  before timm, for what it says where torchvision does not fit torch
