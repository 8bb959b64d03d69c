"""Image features of drawn scenes, and PCA; see `fastrnn.data.scenes.features` and `pca`."""

from .pca import PCA
from .scenes.features import describe_pictures, features_of

__all__ = ["PCA", "describe_pictures", "features_of"]
