"""Benchmarks of fastrnn: against its NumPy twin, against its peers, and at the size of COCO.

``python -m pytest bench`` times every layer, ``python -m bench.peers`` the peers,
``python -m bench.full_coco`` an epoch; ``python -m bench.readme`` writes the figures down.
"""
