"""The functions of `fastrnn.checks`, which were in this module at first."""

from ..checks import *  # noqa: F403
