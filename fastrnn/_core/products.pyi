# The module has C functions only.
