"""lgfast: fast locality-guidance training of vision transformers on tiny datasets."""

from lgfast import models  # registers lgfast's models in timm
from lgfast.version import __version__

__all__ = ["__version__", "models"]
