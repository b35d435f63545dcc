"""What an operator can set, read once at start (``server.settings_sources`` reads it)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from guard.address import UNIX, is_local
from guard.cache import CacheLimits
from guard.cascade import ScreenRules
from guard.engine.settings import EngineSettings
from server.errors import SettingsError
from server.openai_http.settings import OFF, HttpSettings
from server.telemetry.settings import AuditSettings, TelemetrySettings
from server.tls import TlsFiles

_HOST_PORT = re.compile(r"(?:[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\]):([0-9]{1,5})")
MIB = 1 << 20


@dataclass(frozen=True)
class Settings:
    """Settings of one server process. Raises SettingsError naming the setting.

    Models: ``guard`` and ``instruct`` are bundle directories. ``screen`` is that of a small guard that is asked first;
    its SAFE stands for scores below ``screen_safe_below``, its UNSAFE for those above ``screen_unsafe_above`` (0 and 1:
    never), both chosen for policies with ``screen_threshold``. ``admin`` enables LoadModel and UnloadModel, which read
    only below ``model_directory``. With ``bundle_key``, the PEM file of a public key, only bundles signed with it load.

    Network: ``address`` is HOST:PORT (port 0 takes a free one) or unix:PATH. An address that other machines reach needs
    ``tls_cert`` and ``tls_key``, or ``allow_insecure``. With ``tls_client_ca`` every client needs a certificate of it.
    ``max_message_mib`` bounds a request after decompression. ``http_address`` (HOST:PORT or off) serves OpenAI's HTTP.

    Callers: ``callers`` is a YAML file of those who may call, and how they are known; without one, everybody may.
    ``share_caches`` lets callers find what others have asked in the prompt and verdict caches. ``reflection`` offers
    the contract to whoever asks. ``ext_proc`` serves Envoy's external processing, which refuses what takes longer to
    judge than ``ext_proc_timeout_s`` seconds.

    Compute: ``threads`` 0 is the container's CPU quota. ``kv_cache_mib`` bounds the KV caches of one model's active
    requests; 0 is what the machine's memory leaves, at most 512. ``max_queued`` counts those that wait for an engine.

    Admission, each for moderation and generation apart: ``max_requests`` that are being served or wait, and
    ``max_queued_mib`` of their text. ``max_queued_tokens`` bounds prompts and texts of those that wait for an engine. A
    request is refused when its deadline leaves less than ``deadline_part`` times its wait and what it takes itself, as
    far as is known; 0 refuses none.

    Time, in seconds: ``default_deadline_s`` for callers that set none, ``max_deadline_s`` caps all. ``drain_delay_s``
    is between NOT_SERVING and the first refusal on SIGTERM, ``grace_s`` what requests then have to finish. A model
    whose step takes longer than ``step_timeout_s`` hangs, and the process ends. A connection older than
    ``max_connection_age_s`` takes no new calls, so that its client looks again where servers are; 0 is never.

    Generation: ``max_tokens`` a request may ask for, ``default_max_tokens`` for those that do not say. A reader of a
    stream may lag ``max_unsent_tokens`` behind. Reader or writer of any stream may stall for ``stream_idle_s``.

    Moderation: ``policies`` is a YAML file of named policies. ``cache_entries`` verdicts of each guard model, of
    ``cache_mib`` together, are kept for ``cache_ttl_s`` seconds; 0 entries keep none.

    Logs: ``access_log`` writes one JSON line a request. ``audit_file`` takes a line for each verdict, its text hashed
    under the key in ``audit_key_file``; it is replaced at ``audit_max_mib``, ``audit_keep`` old ones stay, and
    ``audit_fsync`` waits for the disk. With ``audit_required`` a verdict that cannot be recorded is not given.

    Telemetry: ``metrics_address`` (HOST:PORT or off) serves Prometheus. ``trace_endpoint`` (http://HOST:PORT, https://
    or off) gets OpenTelemetry spans, of ``trace_ratio`` of the calls whose callers do not trace them.
    """

    guard: Path | None = None
    screen: Path | None = None
    screen_safe_below: float = 0.0
    screen_unsafe_above: float = 1.0
    screen_threshold: float = 0.5
    instruct: Path | None = None
    admin: bool = False
    model_directory: Path | None = None
    bundle_key: Path | None = None
    address: str = "127.0.0.1:50051"
    http_address: str = OFF
    allow_insecure: bool = False
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_client_ca: Path | None = None
    callers: Path | None = None
    share_caches: bool = False
    reflection: bool = True
    ext_proc: bool = False
    ext_proc_timeout_s: float = 10.0
    max_message_mib: float = 4.0
    threads: int = 0
    kv_cache_mib: int = 0
    max_queued: int = 64
    max_queued_tokens: int = 65536
    max_requests: int = 64
    max_queued_mib: float = 16.0
    deadline_part: float = 2.0
    default_deadline_s: float = 120.0
    max_deadline_s: float = 600.0
    drain_delay_s: float = 2.0
    grace_s: float = 30.0
    step_timeout_s: float = 60.0
    max_connection_age_s: float = 0.0
    max_tokens: int = 4096
    default_max_tokens: int = 256
    max_unsent_tokens: int = 512
    stream_idle_s: float = 30.0
    policies: Path | None = None
    cache_entries: int = 4096
    cache_mib: int = 16
    cache_ttl_s: float = 600.0
    access_log: bool = True
    audit_file: Path | None = None
    audit_key_file: Path | None = None
    audit_required: bool = True
    audit_max_mib: int = 64
    audit_keep: int = 10
    audit_fsync: bool = False
    metrics_address: str = "off"
    trace_endpoint: str = "off"
    trace_ratio: float = 1.0

    def __post_init__(self) -> None:
        for name in (
            "max_queued",
            "max_queued_tokens",
            "max_requests",
            "max_tokens",
            "default_max_tokens",
            "max_unsent_tokens",
            "cache_mib",
            "audit_max_mib",
        ):
            _check(name, getattr(self, name) >= 1, "expected at least 1")
        for name in (
            "max_message_mib",
            "max_queued_mib",
            "default_deadline_s",
            "max_deadline_s",
            "step_timeout_s",
            "stream_idle_s",
            "cache_ttl_s",
            "ext_proc_timeout_s",
        ):
            _check(name, getattr(self, name) > 0, "expected a number above 0")  # also false for NaN
        for name in (
            "threads",
            "kv_cache_mib",
            "drain_delay_s",
            "grace_s",
            "max_connection_age_s",
            "cache_entries",
            "audit_keep",
            "deadline_part",
        ):
            _check(name, getattr(self, name) >= 0, "expected 0 or more")
        _check("deadline_part", self.deadline_part <= 10, "expected at most 10")
        _check("max_message_mib", self.max_message_mib <= 1024, "expected at most 1024")
        _check("max_queued_mib", self.max_queued_mib >= self.max_message_mib, "expected at least max_message_mib")
        _check("max_deadline_s", self.max_deadline_s >= self.default_deadline_s, "expected at least default_deadline_s")
        _check("max_tokens", self.max_tokens >= self.default_max_tokens, "expected at least default_max_tokens")
        _check(
            "guard", bool(self.guard or self.instruct or self.admin), "no model to serve: set guard, instruct, or both"
        )
        self._check_screen()
        _check("admin", not self.admin or self.model_directory is not None, "needs model_directory")
        self.telemetry, self.http  # noqa: B018 - check themselves
        host_port = _HOST_PORT.fullmatch(self.address)
        good = self.address.startswith(UNIX) or (host_port is not None and int(host_port[1]) < 1 << 16)
        _check("address", good, "expected HOST:PORT, [IPV6]:PORT or unix:PATH")
        _check("tls_cert", (self.tls_cert is None) == (self.tls_key is None), "expected both tls_cert and tls_key")
        _check("tls_client_ca", self.tls_client_ca is None or self.tls_cert is not None, "needs tls_cert and tls_key")
        _check(
            "address",
            self.allow_insecure or self.tls_cert is not None or is_local(self.address),
            "other machines could reach it without encryption; use a loopback address, tls_cert, or allow_insecure",
        )

    def _check_screen(self) -> None:
        low, high = self.screen_safe_below, self.screen_unsafe_above
        _check("screen_threshold", 0.0 < self.screen_threshold < 1.0, "expected a number above 0 and below 1")
        _check("screen_safe_below", 0.0 <= low <= self.screen_threshold, "expected 0 to screen_threshold")
        _check("screen_unsafe_above", self.screen_threshold <= high <= 1.0, "expected screen_threshold to 1")
        decides = low > 0.0 or high < 1.0
        _check("screen", decides == (self.screen is not None), "goes with screen_safe_below or screen_unsafe_above")
        _check("screen", self.screen is None or self.guard is not None, "needs guard, which it goes before")
        _check("screen", self.screen is None or self.screen != self.guard, "is the guard itself")

    @property
    def screen_rules(self) -> ScreenRules | None:
        """When an answer of the screen stands; None without one."""
        if self.screen is None:
            return None
        return ScreenRules(self.screen_safe_below, self.screen_unsafe_above, self.screen_threshold)

    @property
    def engine(self) -> EngineSettings:
        """The part that each model's engine gets."""
        kv_bytes = self.kv_cache_bytes or EngineSettings.kv_bytes
        return EngineSettings(
            threads=self.threads,
            max_queued=self.max_queued,
            max_queued_tokens=self.max_queued_tokens,
            kv_bytes=kv_bytes,
            deadline_part=self.deadline_part,
        )

    @property
    def kv_cache_bytes(self) -> int:
        """``kv_cache_mib`` in bytes; 0 is for the memory plan to decide."""
        return self.kv_cache_mib * MIB

    @property
    def longest_stop_s(self) -> float:
        """Seconds from SIGTERM to the end at the latest: the drain, then steps and loads that cannot be cut short."""
        return self.drain_delay_s + self.grace_s + 2 * self.step_timeout_s

    @property
    def tls(self) -> TlsFiles | None:
        """The files of the server's TLS; None is plain text."""
        if self.tls_cert is None or self.tls_key is None:
            return None
        return TlsFiles(self.tls_cert, self.tls_key, self.tls_client_ca)

    @property
    def http(self) -> HttpSettings:
        """The part that the HTTP facade gets."""
        return HttpSettings(
            address=self.http_address,
            tls=self.tls,
            allow_insecure=self.allow_insecure,
            max_body_bytes=self.max_message_bytes,
            max_unread_bytes=self.max_queued_bytes,
            idle_s=self.stream_idle_s,
        )

    @property
    def audit(self) -> AuditSettings | None:
        """The part that the audit log gets; None without one."""
        if self.audit_file is None:
            return None
        return AuditSettings(
            file=self.audit_file,
            key_file=self.audit_key_file,
            required=self.audit_required,
            max_bytes=self.audit_max_mib * MIB,
            keep=self.audit_keep,
            fsync=self.audit_fsync,
        )

    @property
    def telemetry(self) -> TelemetrySettings:
        """The part that telemetry gets."""
        return TelemetrySettings(self.metrics_address, self.trace_endpoint, self.trace_ratio, self.allow_insecure)

    @property
    def cache(self) -> CacheLimits:
        """The part that each guard model's verdict cache gets."""
        return CacheLimits(self.cache_entries, self.cache_mib * MIB, self.cache_ttl_s)

    @property
    def max_message_bytes(self) -> int:
        """``max_message_mib`` in bytes."""
        return int(self.max_message_mib * MIB)

    @property
    def max_queued_bytes(self) -> int:
        """``max_queued_mib`` in bytes."""
        return int(self.max_queued_mib * MIB)


def _check(name: str, good: bool, problem: str) -> None:
    if not good:
        raise SettingsError(name, problem)
