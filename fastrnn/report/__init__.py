"""Reports of training runs: a plot of the loss, and an HTML page of curves and captions.

`write_report` writes the page of a run, `watch_report` keeps it up to date during training, and
`draw_loss` draws the plot. `compare_runs` and `draw_comparison` put several runs side by side.
"""

from ..data.pictures import find_picture
from ..runs import REPORT_FILE as PAGE_FILE
from ..runs import read_history
from .comparison import ComparedRun, compare_runs, draw_comparison
from .page import Report, watch_report, write_report
from .plot import draw_loss

__all__ = [
    "PAGE_FILE",
    "ComparedRun",
    "Report",
    "compare_runs",
    "draw_comparison",
    "draw_loss",
    "find_picture",
    "read_history",
    "watch_report",
    "write_report",
]
