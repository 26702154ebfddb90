"""Load labeled images by name or path, in a fixed order."""

from typing import TYPE_CHECKING

from .._lazy import lazy_names

if TYPE_CHECKING:
    from .images import Images as Images
    from .loading import load_images as load_images
else:
    __getattr__ = lazy_names(__name__, {"Images": "images", "load_images": "loading"})

__all__ = ["Images", "load_images"]
