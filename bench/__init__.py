"""Benchmarks of fastrnn against its NumPy reference, PyTorch and JAX, and at the size of COCO.

``python -m pytest bench`` times every layer. ``python -m bench.peers`` compares fastrnn with the
other libraries, ``python -m bench.compare`` two revisions. ``python -m bench.full_coco`` times an
epoch, and ``python -m bench.scaling`` predicts a step on many cores. ``python -m
bench.readme`` writes the results to the README and the docs.
"""
