"""Data sets in CS231n's layout, their reference captions, and drawn scenes to train on.

``annotations`` and ``feature_files`` read what others publish, ``prepare`` makes a data directory
of it, and ``fetch`` downloads one.

``layout`` and ``references`` need nothing but ``fastrnn.files`` and ``fastrnn.words``, so that the
modules of the course can be built on them.
"""
