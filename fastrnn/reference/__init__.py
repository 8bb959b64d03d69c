"""Readable NumPy versions of fastrnn's public functions, with the same names and signatures.

These functions are tested against numerical gradients in float64, and the compiled functions are
tested against them. To read the code, start with ``rnn_layers``.
"""

from . import attention, checks, layers, optim, rnn_layers
from .attention import (
    attention_backward,
    attention_forward,
    attention_step_backward,
    attention_step_forward,
    dot_product_attention,
)
from .classifier import CaptioningRNN
from .layers import (
    affine_backward,
    affine_forward,
    relu_backward,
    relu_forward,
    softmax_loss,
    svm_loss,
)
from .optim import (
    adam,
    adamw,
    average,
    clip_by_norm,
    clip_by_value,
    rmsprop,
    sgd,
    sgd_momentum,
)
from .rnn_layers import (
    lstm_backward,
    lstm_forward,
    lstm_step_backward,
    lstm_step_forward,
    rnn_backward,
    rnn_forward,
    rnn_step_backward,
    rnn_step_forward,
    sigmoid,
    temporal_affine_backward,
    temporal_affine_forward,
    temporal_softmax_loss,
    word_embedding_backward,
    word_embedding_forward,
)
from .solver import CaptioningSolver

__all__ = [
    "CaptioningRNN",
    "CaptioningSolver",
    "adam",
    "adamw",
    "affine_backward",
    "affine_forward",
    "attention",
    "attention_backward",
    "attention_forward",
    "attention_step_backward",
    "attention_step_forward",
    "average",
    "checks",
    "clip_by_norm",
    "clip_by_value",
    "dot_product_attention",
    "layers",
    "lstm_backward",
    "lstm_forward",
    "lstm_step_backward",
    "lstm_step_forward",
    "optim",
    "relu_backward",
    "relu_forward",
    "rmsprop",
    "rnn_backward",
    "rnn_forward",
    "rnn_layers",
    "rnn_step_backward",
    "rnn_step_forward",
    "sgd",
    "sgd_momentum",
    "sigmoid",
    "softmax_loss",
    "svm_loss",
    "temporal_affine_backward",
    "temporal_affine_forward",
    "temporal_softmax_loss",
    "word_embedding_backward",
    "word_embedding_forward",
]
