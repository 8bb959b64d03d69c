"""Reports of training runs: a plot of the loss, and an HTML page of curves and captions.

`write_report` writes the page of a run, `watch_report` keeps it up to date during training, and
`draw_loss` draws the plot.
"""

from ..data.pictures import find_picture
from ..runs import REPORT_FILE as PAGE_FILE
from ..runs import read_history
from .page import Report, watch_report, write_report
from .plot import draw_loss

__all__ = [
    "PAGE_FILE",
    "Report",
    "draw_loss",
    "find_picture",
    "read_history",
    "watch_report",
    "write_report",
]
