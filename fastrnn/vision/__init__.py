__all__ = ["PCA_FILE", "SOURCE_FILE"]
"""Photographs to features: safe reading, networks, and what a data directory knows of them."""

SOURCE_FILE = "features.json"
"""How the features of a data directory or of a run were made; see `fastrnn.vision.source`."""
PCA_FILE = "pca.npz"
"""The PCA that `SOURCE_FILE` describes, beside it."""
