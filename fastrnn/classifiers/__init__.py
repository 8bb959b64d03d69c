"""The captioning model, under the import path of CS231n's notebooks."""

from .rnn import CaptioningRNN

__all__ = ["CaptioningRNN"]
