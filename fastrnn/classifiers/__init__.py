"""The captioning model, where CS231n's notebooks look for it."""

from .rnn import CaptioningRNN

__all__ = ["CaptioningRNN"]
