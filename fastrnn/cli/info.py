"""``fastrnn info``: what fastrnn runs on."""

from __future__ import annotations

import argparse
import platform
from typing import Any

import numpy as np

import fastrnn

from .._core import runtime
from ..terminal import say_facts


def add_parser(commands: Any) -> Any:
    """Add the command; return its parser."""
    parser = commands.add_parser(
        "info",
        help="print versions, instruction set, threads",
        description="Print what fastrnn runs on: versions, instruction set in use, threads, BLAS.",
        epilog="example: FASTRNN_MAX_ISA=avx2 fastrnn info",
    )
    parser.set_defaults(run=run)
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    import importlib.metadata  # slow to import, and no other command uses it

    blas = np.show_config(mode="dicts")["Build Dependencies"].get("blas", {})
    facts = {
        "fastrnn": fastrnn.__version__,
        "instruction set": runtime.isa(),
        "threads": f"{fastrnn.get_num_threads()} ({'OpenMP' if runtime.openmp() else 'no OpenMP'})",
        "NumPy's BLAS": f"{blas.get('name', 'unknown')} {blas.get('version', '')}".strip(),
        "Python": f"{platform.python_version()}, {platform.platform()}",
    }
    for package in ("numpy", "scipy", "h5py", "matplotlib", "pillow", "tqdm"):
        try:
            facts[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            facts[package] = "missing"
    say_facts(facts, 17)
    return 0
