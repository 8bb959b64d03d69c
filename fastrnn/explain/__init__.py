"""Why a model says what it says about an image: saliency, fooling images, visualisations.

All of it is made of gradients of words' log-probabilities: by our BPTT to the image features,
through the PCA, and by PyTorch to the pixels. PyTorch is imported only by the functions that need
it.
"""

from .gradients import pixel_gradients, word_gradients
from .saliency import METHODS, Saliency, saliency

__all__ = ["METHODS", "Saliency", "pixel_gradients", "saliency", "word_gradients"]
