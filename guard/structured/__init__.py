"""Output formats enforced while a text is written: which tokens may come next, so that the text always parses.

A format comes from a caller, so its size and the work that it may cause are bounded: a grammar that is too complex is
refused, it never holds the engine up.
"""

from guard.structured.compiler import FormatCompiler

__all__ = ["FormatCompiler"]
