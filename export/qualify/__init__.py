"""``guard qualify``: what exporting a checkpoint can say about it, one line with PASS or FAIL each."""

from export.qualify.lines import Line
from export.qualify.run import Qualification, QualifyRequest, qualify

__all__ = ["Line", "Qualification", "QualifyRequest", "qualify"]
