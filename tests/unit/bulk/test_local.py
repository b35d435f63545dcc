"""One process and several, with a tiny guard that runs."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from guard.bulk.judge import LocalGuard, RowJudge
from guard.bulk.local import InProcess, Processes
from guard.bulk.source import Item, Source
from guard.errors import BundleError, InvalidInputError, ModelOutputError, UnavailableError, UnsupportedError
from guard.phrases import Phrase, PhraseList
from guard.policies import NamedPolicy
from guard.policy import CustomCategory, Policy, PolicyAction

from .helpers import SECRET, TEXT, write_rows

DEFAULT = NamedPolicy("default", Policy())


@pytest.fixture
def guard(bundle: Path) -> LocalGuard:
    return LocalGuard(bundle, DEFAULT)


def judged(backend: Any, source: Source) -> list[dict[str, Any]]:
    return [json.loads(line) for lines in backend.judge(source) for line in lines]


def test_processes_give_what_one_gives_to_the_last_byte(guard: LocalGuard, tmp_path: Path) -> None:
    source = Source(write_rows(tmp_path / "rows.jsonl", 60, bad=(3,)), TEXT, "id", batch=4)
    alone = [line for lines in InProcess(guard).judge(source) for line in lines]
    assert [line for lines in Processes(guard, 2).judge(source) for line in lines] == alone
    assert [line for lines in InProcess(replace(guard, threads=2)).judge(source) for line in lines] == alone
    assert [line for lines in InProcess(guard).judge(source.after(17)) for line in lines] == alone[17:]
    assert [json.loads(line)["id"] for line in alone] == list(range(60))


def test_all_of_a_policy_reaches_the_processes(bundle: Path, tmp_path: Path) -> None:
    policy = Policy(
        threshold=0.25,
        category_thresholds={"S1": 0.9},
        excluded_categories=frozenset({"S7"}),
        action=PolicyAction.SHADOW,
        deny=PhraseList((Phrase(f"{SECRET} 2", "no-zebras"),)),
    )
    guard = LocalGuard(bundle, NamedPolicy("strict", policy))
    source = Source(write_rows(tmp_path / "rows.jsonl", 3), TEXT, batch=1)
    rows = judged(Processes(guard, 2), source)
    assert rows == judged(InProcess(guard), source)
    assert all("S7" not in row["scores"] and row["policy"] == "strict" for row in rows)
    assert (rows[2]["verdict"], rows[2]["action"], rows[2]["decided_by"], rows[2]["scores"]) == (
        *("unsafe", "report", "deny_list", {}),
    )


class Refusing:
    """A classifier that answers as told."""

    def __init__(self, judge: RowJudge, outcome: Exception) -> None:
        self.bundle = judge._classifier.bundle
        self._outcome = outcome

    def submit(self, task: Any) -> Any:
        raise self._outcome


@pytest.mark.parametrize(
    ("outcome", "error", "field"),
    [
        (ModelOutputError("the model's logits are not finite"), "MODEL_OUTPUT_UNREADABLE", None),
        (InvalidInputError("messages", "200000 tokens, the limit is 131072"), "INVALID_INPUT", "messages"),
    ],
)
def test_a_row_that_the_guard_cannot_judge_has_an_error_and_no_verdict(
    guard: LocalGuard, tmp_path: Path, outcome: Exception, error: str, field: str | None
) -> None:
    items = list(Source(write_rows(tmp_path / "rows.jsonl", 2), TEXT).items())
    judge = guard.load()
    refusing: Any = Refusing(judge, outcome)
    rows = list(RowJudge(refusing, DEFAULT, "one_pass").values(items))
    judge.close()
    assert [(row["row"], row["verdict"], row["error"], row["field"]) for row in rows] == [
        (1, None, error, field),
        (2, None, error, field),
    ]


def test_a_model_step_that_fails_is_its_rows_error_and_an_engine_that_stopped_is_the_runs(
    guard: LocalGuard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = list(Source(write_rows(tmp_path / "rows.jsonl", 2), TEXT).items())
    judge = guard.load()

    def breaks(*given: Any) -> Any:
        raise RuntimeError(SECRET)

    monkeypatch.setattr(judge._classifier.engine._scheduler._runner, "forward", breaks)
    rows = list(judge.values(items))
    assert [(row["verdict"], row["error"], row["problem"]) for row in rows] == [
        (None, "INTERNAL", "the model failed")
    ] * 2
    judge.close()
    with pytest.raises(UnavailableError):
        judge.lines(items)


def test_a_text_that_is_too_long_is_told_with_its_limit(guard: LocalGuard, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"text": "word " * 200_000}) + "\n" + json.dumps({"text": "hello"}) + "\n")
    first, second = judged(InProcess(guard), Source(path, TEXT))
    assert (first["verdict"], first["error"], first["field"]) == (None, "INPUT_TOO_LONG", "messages")
    assert "the limit is 131072" in first["problem"]
    assert second["verdict"] is not None


def test_a_guard_that_cannot_judge_by_the_policy_says_so(guard: LocalGuard, bundle: Path, tmp_path: Path) -> None:
    custom = Policy(custom_categories=(CustomCategory("S99", "Zebras"),))
    with pytest.raises((UnsupportedError, InvalidInputError)):
        assert InProcess(LocalGuard(bundle, NamedPolicy("custom", custom))).identity
    identity = Processes(guard, 2).identity
    assert (identity.model, identity.policy_digest) == ("tiny-guard", Policy().digest)


@dataclass(frozen=True)
class Ending(LocalGuard):
    """A guard whose process ends in a way of its own: when it loads, or at a row of ``rows``, as long as ``flag`` is
    there.
    """

    flag: Path = Path()
    rows: tuple[int, ...] = ()
    error: Exception | None = None

    def load(self) -> Any:
        if not self.rows:
            self.end()
        return EndingJudge(self, super().load())

    def end(self) -> None:
        if self.flag.exists():
            if self.error is not None:
                raise self.error
            if self.flag.read_text() == "once":
                self.flag.unlink()
            os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class EndingJudge:
    guard: Ending
    judge: RowJudge

    def lines(self, items: Sequence[Item]) -> tuple[bytes, ...]:
        if any(item.number in self.guard.rows for item in items):
            self.guard.end()
        return self.judge.lines(items)


@pytest.mark.parametrize("rows", [(), (1,), (17,), (40,)])
def test_a_process_that_is_killed_is_replaced_and_loses_nothing(
    guard: LocalGuard, tmp_path: Path, rows: tuple[int, ...]
) -> None:
    (tmp_path / "flag").write_text("once")
    source = Source(write_rows(tmp_path / "rows.jsonl", 40), TEXT, "id", batch=4)
    ending = Ending(guard.bundle, DEFAULT, flag=tmp_path / "flag", rows=rows)
    assert judged(Processes(ending, 2), source) == judged(InProcess(guard), source)
    assert not (tmp_path / "flag").exists()


@pytest.mark.parametrize(("rows", "message"), [((), "loaded the guard"), ((6,), "judged rows 5 to 8")])
def test_processes_that_end_again_and_again_end_the_run(
    guard: LocalGuard, tmp_path: Path, rows: tuple[int, ...], message: str
) -> None:
    (tmp_path / "flag").write_text("always")
    source = Source(write_rows(tmp_path / "rows.jsonl", 40), TEXT, batch=4)
    ending = Ending(guard.bundle, DEFAULT, flag=tmp_path / "flag", rows=rows)
    done: list[bytes] = []
    with pytest.raises(UnavailableError, match=f"3 processes ended while they {message} .signal 9, perhaps"):
        for lines in Processes(ending, 2).judge(source):
            done += lines
    assert len(done) == (4 if rows else 0)


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (BundleError("weights.bin: not as written"), BundleError, "weights.bin: not as written"),
        (MemoryError(SECRET), UnavailableError, "a process failed with MemoryError"),
    ],
)
def test_what_a_process_raises_is_said_here(
    guard: LocalGuard, tmp_path: Path, error: Exception, kind: type[Exception], message: str
) -> None:
    (tmp_path / "flag").write_text("always")
    ending = Ending(guard.bundle, DEFAULT, flag=tmp_path / "flag", error=error)
    source = Source(write_rows(tmp_path / "rows.jsonl", 4), TEXT)
    with pytest.raises(kind, match=f"^{message}$"):
        judged(Processes(ending, 2), source)


def test_no_process_outlives_the_run(guard: LocalGuard, tmp_path: Path) -> None:
    source = Source(write_rows(tmp_path / "rows.jsonl", 200), TEXT, batch=1)
    answers = Processes(guard, 2).judge(source)
    next(answers)
    children = Path(f"/proc/self/task/{threading.get_native_id()}/children")
    running = [pid for pid in children.read_text().split() if "spawn_main" in _command(pid)]
    assert len(running) == 2
    answers.close()
    deadline = time.monotonic() + 10
    while any("spawn_main" in _command(pid) for pid in running):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _command(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""
