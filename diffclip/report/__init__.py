"""Tables and figures from tidy results, and nothing else: no model is loaded here.

`read(scale)` and `paper()` give results of one form; `table1` ... `figure5` show them, the paper's numbers beside ours;
`build_report(scale)` writes everything, the self-contained page included.
"""

from .build import beside_paper, build_report
from .figures import figure1, figure3, figure4, figure5
from .results import Results, ResultsError, from_frames, paper, read
from .tables import Table, table1, table2, table3

__all__ = [
    "Results",
    "ResultsError",
    "Table",
    "beside_paper",
    "build_report",
    "figure1",
    "figure3",
    "figure4",
    "figure5",
    "from_frames",
    "paper",
    "read",
    "table1",
    "table2",
    "table3",
]
