"""The peak memory of a process. Imports little, so that it can be asked of a bare import."""

from __future__ import annotations

import sys
from pathlib import Path

STATUS = Path("/proc/self/status")


def peak_bytes() -> int:
    """Return the peak resident set size of this process, in bytes."""
    # VmHWM begins anew with a program. ru_maxrss does not: that of a child which was forked from
    # a large process is at least as large.
    if STATUS.exists():
        for line in STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    import resource

    found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return found if sys.platform == "darwin" else 1024 * found
