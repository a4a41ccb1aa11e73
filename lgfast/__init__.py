"""lgfast: fast locality-guidance training of vision transformers on tiny datasets."""

from lgfast import models, ops  # importing models registers them in timm
from lgfast.version import __version__

__all__ = ["__version__", "models", "ops"]
