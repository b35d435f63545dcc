"""Asking a running server about rows, a batch at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

from guard.client import (
    Classification,
    GuardClient,
    GuardClientError,
    ModelInfo,
    RequestRejectedError,
    ServerBusyError,
    ServerUnavailableError,
)
from guard.errors import InvalidInputError
from guard.evaluation.predictions import Judge, Prediction
from guard.evaluation.rows import Row
from guard.evaluation.runner import asking_policy, to_prediction
from guard.reader import Mode

_BATCH = 16
_ATTEMPTS = 8
_LONGEST_WAIT_S = 30.0
#: Later may go better: these are tried again, and end the evaluation (to be resumed) when they last.
_PASSING = (ServerBusyError, ServerUnavailableError)


class RemotePredictor:
    """Asks the server of ``client`` with BatchClassify. Raises GuardClientError when it cannot be asked (any more)."""

    def __init__(
        self,
        client: GuardClient,
        model: str,
        mode: Mode,
        threshold: float,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        chosen = _guard_model(client.list_models(), model)
        self.judge = Judge(chosen.name, chosen.manifest_sha256, chosen.quantization, mode)
        self._client = client
        self._mode = mode
        self._policy = asking_policy(mode, threshold)
        self._sleep = sleep

    def predict(self, rows: Sequence[Row]) -> Iterator[tuple[Row, Prediction]]:
        """In order."""
        for start in range(0, len(rows), _BATCH):
            yield from self._batch(rows[start : start + _BATCH])

    def _batch(self, rows: Sequence[Row]) -> Iterator[tuple[Row, Prediction]]:
        done: dict[int, Prediction] = {}
        attempt = 0
        while left := [index for index in range(len(rows)) if index not in done]:
            outcomes = self._ask([rows[index] for index in left])
            passing = [outcome for outcome in outcomes if isinstance(outcome, _PASSING)]
            for index, outcome in zip(left, outcomes, strict=True):
                if not isinstance(outcome, _PASSING):
                    done[index] = self._prediction(outcome)
            if passing:
                attempt += 1
                self._wait(passing[0], attempt)
        yield from ((row, done[index]) for index, row in enumerate(rows))

    def _ask(self, rows: Sequence[Row]) -> Sequence[Classification | GuardClientError]:
        try:
            return self._client.batch_classify(
                [row.conversation.messages for row in rows],
                policy=self._policy,
                exact=self._mode == "exact",
                model=self.judge.model,
            )
        except _PASSING as error:
            return [error] * len(rows)
        except RequestRejectedError as error:  # too large together, perhaps; alone it is the row's own error
            if len(rows) == 1:
                return [error]
            return [outcome for row in rows for outcome in self._ask([row])]

    def _prediction(self, outcome: Classification | GuardClientError) -> Prediction:
        if isinstance(outcome, GuardClientError):
            return Prediction(None, error=outcome.reason)
        return to_prediction(outcome, self._mode)

    def _wait(self, error: GuardClientError, attempt: int) -> None:
        if attempt == _ATTEMPTS:
            raise error
        self._sleep(min(_LONGEST_WAIT_S, error.retry_after_s or 0.25 * 2**attempt))


def _guard_model(models: Sequence[ModelInfo], name: str) -> ModelInfo:
    """The guard called ``name``, or the only one. Raises InvalidInputError."""
    guards = [model for model in models if model.task == "guard" and name in ("", model.name)]
    if len(guards) != 1:
        names = ", ".join(model.name for model in models if model.task == "guard") or "none"
        raise InvalidInputError("model", f"name one guard model of the server; there are: {names}")
    return guards[0]
