"""The checks of an exported guard: built-in conversations, both modes, the user's rows, and agreement with float32."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.qualify.lines import Lines, Result
from export.qualify.probes import probe_data
from export.qualify.published import published_scores
from guard.classifier import Classifier, Mode
from guard.engine.settings import EngineSettings
from guard.evaluation.evaluate import PREDICTIONS_FILE, EvaluationRequest, evaluate, is_complete
from guard.evaluation.page import bounds, number
from guard.evaluation.predictions import Judge, read_predictions
from guard.evaluation.rows import DataSet
from guard.evaluation.runner import LocalPredictor, Progress
from guard.runtime import load_guard

#: A trained guard ranks nearly every plainly harmful conversation above every plainly harmless one; chance is 0.5.
SEPARATION_AUROC = 0.85
#: Share of verdicts that must be float32's.
AGREEMENT = {"int8": 0.99, "int4": 0.95, "int4-small": 0.9}
#: Share of built-in conversations on which exact and one-pass mode must agree, and how near their scores must be.
MODE_AGREEMENT, MODE_SCORES = 0.95, 1e-3
_THRESHOLD = 0.5
_FLOAT32 = "none"


@dataclass(frozen=True)
class GuardSetup:
    """What guards are checked with. ``out`` has their bundles and gets a folder for each evaluation."""

    out: Path
    data: DataSet | None
    benchmark: str | None
    limit: int | None
    threads: int
    progress: Progress


def check_guard(setup: GuardSetup, profile: str, lines: Lines) -> None:
    """Add the lines of the bundle ``out/<profile>``."""
    loaded: list[Classifier] = []

    def load() -> Result:
        loaded.append(load_guard(setup.out / profile, EngineSettings(threads=setup.threads)))
        return "PASS", "verified, loaded and run"

    if lines.add("loads", load, profile=profile):
        try:
            _GuardChecks(setup, loaded[0], profile, lines).run()
        finally:
            loaded[0].close()


class _GuardChecks:
    """The lines of one loaded guard."""

    def __init__(self, setup: GuardSetup, classifier: Classifier, profile: str, lines: Lines) -> None:
        self._setup = setup
        self._classifier = classifier
        self._profile = profile
        self._lines = lines
        self._figures: dict[str, Any] = lines.figures[profile]

    def run(self) -> None:
        self._add("tells safe from unsafe", self._separation)
        self._add("one pass against exact", self._modes)
        self._add("evaluation", self._evaluation, needs_trained=False)
        self._add("published scores", self._published)
        if self._profile != _FLOAT32:
            self._add("verdicts against float32", self._agreement)

    def _add(self, check: str, result: Callable[[], Result], needs_trained: bool = True) -> None:
        self._lines.add(check, result, profile=self._profile, needs_trained=needs_trained)

    def _separation(self) -> Result:
        report = self._evaluate(probe_data(), "probes", limit=None)
        overall, auroc = report["overall"], report["overall"]["auroc"]
        said = (
            f"{overall['rows']} built-in conversations: AUROC {number(auroc)} (at least {SEPARATION_AUROC}),"
            f" recall {number(overall['recall'])}, FPR {number(overall['false_positive_rate'])}"
        )
        return ("PASS" if auroc >= SEPARATION_AUROC and is_complete(report) else "FAIL"), said

    def _modes(self) -> Result:
        """An exact answer that cannot be read is a disagreement."""
        fast, exact = self._scores("one_pass"), self._scores("exact")
        pairs = [(a, b) for a, b in zip(fast, exact, strict=True) if a is not None and b is not None]
        same = sum((a >= _THRESHOLD) == (b >= _THRESHOLD) and abs(a - b) < MODE_SCORES for a, b in pairs)
        unreadable = sum(score is None for score in exact)
        self._figures["mode_agreement"] = same / len(fast)
        said = f"{same} of {len(fast)} built-in conversations agree; {unreadable} exact answers could not be read"
        return ("PASS" if same >= MODE_AGREEMENT * len(fast) else "FAIL"), said

    def _scores(self, mode: Mode) -> list[float | None]:
        predictor = LocalPredictor(self._classifier, mode, _THRESHOLD)
        return [prediction.score for _, prediction in predictor.predict(probe_data().rows)]

    def _evaluation(self) -> Result:
        data = self._setup.data
        if data is None:
            return "SKIPPED", "no --data"
        report = self._evaluate(data, "evaluation", self._setup.limit)
        overall = report["overall"]
        said = (
            f"{overall['rows']} rows of {data.name}: F1 {number(overall['f1'])}"
            f" ({bounds(overall['intervals']['f1'])}), FPR {number(overall['false_positive_rate'])};"
            f" {overall['errors']} without a verdict, {len(data.bad)} not readable"
        )
        return ("PASS" if is_complete(report) else "FAIL"), said

    def _published(self) -> Result:
        name = self._setup.benchmark
        if name is None:
            return "SKIPPED", "say with --data and --benchmark on which published benchmark"
        if "evaluation" not in self._figures:
            return "SKIPPED", "the rows were not evaluated"
        published, (low, high) = published_scores()[name], self._figures["evaluation"]["f1_interval"]
        said = f"F1 {bounds((low, high))} measured, {bounds(published.f1)} published ({published.source})"
        return ("PASS" if low is not None and published.agrees((low, high)) else "FAIL"), said

    def _agreement(self) -> Result:
        """On the user's rows, or else on the built-in conversations; a few rows cannot tell 99% from 98%."""
        found = [self._figures[kind] for kind in ("evaluation", "probes") if kind in self._figures]
        comparison = found[0]["comparison"] if found else None
        if comparison is None:
            return "SKIPPED", "there is no float32 export to compare with"
        share, needed = comparison["verdict_agreement"], AGREEMENT[self._profile]
        said = (
            f"{share:.2%} of {comparison['rows']} verdicts (at least {needed:.0%}), scores differ by"
            f" {number(comparison['score_difference']['mean'])} on average, F1 by {number(comparison['f1_change'])}"
        )
        if share >= needed:
            return "PASS", said
        if highest_share(share, comparison["rows"]) >= needed:
            return "SKIPPED", f"{said}; these rows are too few to tell"
        return "FAIL", said

    def _evaluate(self, data: DataSet, kind: str, limit: int | None) -> dict[str, Any]:
        out = self._setup.out / f"{kind}-{self._profile}"
        predictor = LocalPredictor(self._classifier, "one_pass", _THRESHOLD)
        compared = self._profile != _FLOAT32 and kind in self._lines.figures.get(_FLOAT32, {})
        request = EvaluationRequest(
            data=data,
            out=out,
            threshold=_THRESHOLD,
            limit=limit,
            compare=self._setup.out / f"{kind}-{_FLOAT32}" / PREDICTIONS_FILE if compared else None,
            restart=_of_another(out / PREDICTIONS_FILE, predictor.judge),
        )
        report = evaluate(request, predictor, self._setup.progress)
        overall = report["overall"]
        self._figures[kind] = {
            "rows": overall["rows"],
            "errors": overall["errors"],
            "f1": overall["f1"],
            "f1_interval": overall["intervals"]["f1"],
            "precision": overall["precision"],
            "recall": overall["recall"],
            "false_positive_rate": overall["false_positive_rate"],
            "auprc": overall["auprc"],
            "ece": report["calibration"]["ece"],
            "comparison": report["comparison"],
        }
        return report


def highest_share(share: float, rows: int) -> float:
    """The upper end of Wilson's 95% interval (1927) of a share that was measured on ``rows`` rows."""
    z = 1.96
    middle = share + z * z / (2 * rows)
    half = z * math.sqrt(share * (1 - share) / rows + (z / (2 * rows)) ** 2)
    return (middle + half) / (1 + z * z / rows)


def _of_another(path: Path, judge: Judge) -> bool:
    """Whether ``path`` has predictions of an earlier export, which are of no use now."""
    return path.exists() and path.stat().st_size > 0 and read_predictions(path)[0] != judge
