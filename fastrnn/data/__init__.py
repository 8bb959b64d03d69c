"""Data sets in CS231n's layout, their reference captions, and drawn scenes to train on.

``layout`` and ``references`` need nothing but ``fastrnn.files`` and ``fastrnn.words``, so that the
modules of the course can be built on them.
"""
