"""The audit log, for those who ask for it: one JSON line a verdict. The text is not in it, but its keyed hash is.

Streams let go of text before its verdict is complete, so they have a line before the first of it, too, and one when
they break off: a line "begun" that nothing follows is of a process that ended in the middle.

Each line is one ``write`` to a file that is only appended to, on a thread of its own. A line that did not fit (a full
disk) is cut off again, so that the file has whole lines only. Nothing is buffered: a verdict that was refused because
it could not be recorded does not turn up later.
"""

from __future__ import annotations

import asyncio
import errno
import hmac
import json
import logging
import os
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from guard.errors import UnavailableError
from guard.policies import NamedPolicy
from guard.verdict import Judgement, action_for
from server import log
from server.errors import SettingsError
from server.observer import Judged, Streamed
from server.telemetry.settings import AuditSettings

MIN_KEY_BYTES = 32
_MODE = 0o600


class AuditFile:
    """Whole lines, appended. Used from one thread at a time. Raises OSError for what the disk does not take."""

    def __init__(self, path: Path, max_bytes: int, keep: int, fsync: bool) -> None:
        self._path, self._max_bytes, self._keep, self._fsync = path, max_bytes, keep, fsync
        self._descriptor: int | None = None
        self._opened()

    def append(self, line: bytes) -> None:
        """Write one line, in a new file when it does not fit into this one."""
        descriptor = self._opened()
        size = os.fstat(descriptor).st_size
        if size and size + len(line) > self._max_bytes:
            self.close()
            self._rotate()
            descriptor, size = self._opened(), 0
        try:
            if os.write(descriptor, line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if self._fsync:
                os.fsync(descriptor)
        except OSError:
            with suppress(OSError):
                os.ftruncate(descriptor, size)
            raise

    def close(self) -> None:
        """Write no more, unless ``append`` is called again."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _opened(self) -> int:
        if self._descriptor is None:
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
            self._descriptor = os.open(self._path, flags, _MODE)
        return self._descriptor

    def _rotate(self) -> None:
        """FILE.1 becomes FILE.2 and so on, the oldest is gone, and FILE begins anew."""
        if self._keep == 0:
            self._path.unlink()
        for number in range(self._keep, 0, -1):
            older = self._numbered(number - 1)
            if older.exists():
                older.replace(self._numbered(number))

    def _numbered(self, number: int) -> Path:
        return self._path if number == 0 else self._path.with_name(f"{self._path.name}.{number}")


class AuditLog:
    """Raises SettingsError when the file or the key cannot be used."""

    def __init__(self, settings: AuditSettings) -> None:
        self._settings = settings
        self._key = _read_key(settings.key_file)
        try:
            self._file = AuditFile(settings.file, settings.max_bytes, settings.keep, settings.fsync)
        except OSError as error:
            raise SettingsError("audit_file", f"{settings.file}: {error.strerror}") from error
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="audit")
        self._failing = False

    async def record(self, line: Mapping[str, Any]) -> bool:
        """Write a line; returns whether the disk took it. Raises UnavailableError when it did not and the log is
        required.
        """
        taken = await asyncio.wrap_future(self.note(line))
        if not taken and self._settings.required:
            raise UnavailableError("the verdict cannot be recorded in the audit log")
        return taken

    def note(self, line: Mapping[str, Any]) -> Future[bool]:
        """Write a line, whether anybody waits for it or not: of a call that has ended."""
        return self._thread.submit(self._write, json.dumps(line, ensure_ascii=False).encode() + b"\n")

    def _write(self, line: bytes) -> bool:
        try:
            self._file.append(line)
        except OSError as error:
            if not self._failing:  # once, not for every verdict of an outage
                log.event(logging.ERROR, "audit_failed", problem=error.strerror, required=self._settings.required)
            self._failing = True
            return False
        if self._failing:
            log.event(logging.INFO, "audit_recovered")
        self._failing = False
        return True

    def verdict(self, judged: Judged, method: str, caller: str | None) -> Mapping[str, Any]:
        """The line of a verdict. ``text_hmac`` is HMAC-SHA256 of the judged text's UTF-8 bytes."""
        streamed = Streamed(judged.target, judged.applied, judged.entry, judged.request_id)
        found = self._found(judged.judgement, judged.applied, judged.text)
        return _line(streamed, method, caller, "judged") | found

    def begun(self, streamed: Streamed, method: str, caller: str | None) -> Mapping[str, Any]:
        """The line of a stream whose first text is about to leave."""
        return _line(streamed, method, caller, "begun")

    def broken_off(
        self,
        streamed: Streamed,
        method: str,
        caller: str | None,
        reason: str,
        judgement: Judgement | None,
        text: str,
    ) -> Mapping[str, Any]:
        """The line of a stream that ended for ``reason`` when ``judgement`` was that about ``text``."""
        found: dict[str, Any] = {"verdict": None, "text_hmac": text_hmac(self._key, text)}
        if judgement is not None:
            found = self._found(judgement, streamed.applied, text)
        return _line(streamed, method, caller, reason) | found

    def _found(self, judgement: Judgement, applied: NamedPolicy, text: str) -> dict[str, Any]:
        return {
            "verdict": judgement.verdict.value,
            "unsafe_score": round(judgement.unsafe_score, 6),
            "categories": {found.code: round(found.score, 6) for found in judgement.categories},
            "flagged": [found.code for found in judgement.categories if found.flagged],
            "action": action_for(judgement.verdict, applied.policy).value,
            "decided_by": judgement.decided_by.value,
            "matched_entry": judgement.matched_entry,
            "text_hmac": text_hmac(self._key, text),
        }

    def close(self) -> None:
        """Finish the lines that are on their way."""
        self._thread.shutdown()
        self._file.close()


def _line(streamed: Streamed, method: str, caller: str | None, outcome: str) -> dict[str, Any]:
    return {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "request_id": streamed.request_id,
        "caller": caller,
        "method": method,
        "model": streamed.entry.name,
        "model_digest": streamed.entry.digest,
        "policy": streamed.applied.name,
        "policy_digest": streamed.applied.policy.digest,
        "target": streamed.target.value,
        "outcome": outcome,
    }


def text_hmac(key: bytes, text: str) -> str:
    """What stands for ``text`` in a log under ``key``, the content of the key's file without white space around it."""
    return hmac.digest(key, text.encode(), "sha256").hex()


def _read_key(path: Path | None) -> bytes:
    if path is None:
        raise SettingsError("audit_file", "needs audit_key_file: texts are recorded as hashes under its key")
    try:
        key = path.read_bytes().strip()
    except OSError as error:
        raise SettingsError("audit_key_file", f"{path}: {error.strerror}") from error
    if len(key) < MIN_KEY_BYTES:
        raise SettingsError("audit_key_file", f"{path}: {len(key)} bytes, expected at least {MIN_KEY_BYTES}")
    return key
