"""What decoding shares with the training step."""

cdef tuple parameters(object params, object features, bint lstm)
