"""Builds a run from its configuration: device, images, loaders, networks, teacher, run."""
