"""Puts a run together from its configuration: device, images, loaders, networks, teacher, run."""
