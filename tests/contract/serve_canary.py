"""``python -m tests.contract.serve_canary``: a server process whose faults quote what callers wrote.

As ``serve_fakes``, with #raise# (a model step fails) and #die# (its engine's thread dies) beside its faults, and
SIGUSR1 for an error that ends the process: the text of each has CANARY. Spans go to the file CANARY_SPANS.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from server.settings_sources import load_settings
from server.start import begin
from server.telemetry import tracing

from . import serve_fakes

CANARY = "canary-3f9c-änderung"


class Fatal(BaseException):
    """What no engine is prepared for: its thread dies."""


class FileExporter(SpanExporter):
    """Appends each span as JSON."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """To the file, at once."""
        with self._path.open("a", encoding="utf-8") as file:
            file.writelines(f"{span.to_json(indent=None)}\n" for span in spans)
        return SpanExportResult.SUCCESS


def fail(kind: type[BaseException]) -> Callable[..., None]:
    """A fault that raises ``kind`` with the canary in its text."""

    def raise_it(*_: object) -> None:
        raise kind(f"cannot read {CANARY}")

    return raise_it


def main() -> int:
    """Serves; returns the exit status."""
    begin(load_settings({}, os.environ))
    signal.signal(signal.SIGUSR1, fail(RuntimeError))
    serve_fakes.FAULTS |= {"#raise#": fail(RuntimeError), "#die#": fail(Fatal)}
    spans = FileExporter(Path(os.environ["CANARY_SPANS"]))
    tracing.to_collector = lambda endpoint, ratio: tracing.Tracing(spans, ratio, batched=False)
    return serve_fakes.main()


if __name__ == "__main__":
    sys.exit(main())
