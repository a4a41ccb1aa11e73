"""lgfast: fast locality-guidance training of vision transformers on tiny datasets."""

from lgfast.version import __version__

__all__ = ["__version__"]
