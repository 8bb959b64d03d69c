"""Why a model says what it says about an image: saliency, fooling images, visualisations.

All of it is made of gradients of words' log-probabilities and scores: by our BPTT to the image
features, through the PCA, and by PyTorch to the pixels. PyTorch is imported only by the functions
that need it. The products are in float32, also for a model whose captions are decoded in bfloat16.
The names of the functions for a classifier are those of the course.
"""

from .gradients import MEASURES, pixel_gradients, word_gradients
from .images import (
    Fooling,
    Visualisation,
    class_visualization_update_step,
    classifier_of,
    compute_saliency_maps,
    create_class_visualization,
    fool,
    make_fooling_image,
    visualise,
)
from .saliency import METHODS, Saliency, saliency

__all__ = [
    "MEASURES",
    "METHODS",
    "Fooling",
    "Saliency",
    "Visualisation",
    "class_visualization_update_step",
    "classifier_of",
    "compute_saliency_maps",
    "create_class_visualization",
    "fool",
    "make_fooling_image",
    "pixel_gradients",
    "saliency",
    "visualise",
    "word_gradients",
]
