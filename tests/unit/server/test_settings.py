from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from guard.address import is_local
from guard.cascade import ScreenRules
from server.errors import SettingsError
from server.settings import Settings
from server.settings_sources import load_settings

GUARD: dict[str, Any] = {"guard": Path("g")}


def test_precedence(tmp_path: Path) -> None:
    config = tmp_path / "guard.yaml"
    config.write_text("guard: from-file\nthreads: 1\nmax_queued: 11\ngrace_s: 7\naccess_log: false\n")
    environment = {"GUARD_THREADS": "2", "GUARD_MAX_QUEUED": "12", "OTHER": "x"}
    settings = load_settings({"threads": 3, "instruct": None}, environment, config)
    assert (settings.threads, settings.max_queued, settings.grace_s) == (3, 12, 7.0)
    assert (settings.guard, settings.instruct, settings.access_log) == (Path("from-file"), None, False)
    assert settings.kv_cache_mib == Settings(**GUARD).kv_cache_mib


@pytest.mark.parametrize("field", dataclasses.fields(Settings), ids=lambda field: str(field.name))
def test_every_setting_can_come_from_a_variable(field: dataclasses.Field[Any]) -> None:
    default = getattr(Settings(**GUARD), field.name)
    wanted = Path("models") if default is None or isinstance(default, Path) else default
    needed = {"GUARD_INSTRUCT": "i", "GUARD_MODEL_DIRECTORY": "m", "GUARD_TLS_CERT": "c", "GUARD_TLS_KEY": "k"}
    needed |= {
        "GUARD_GUARD": "g",
        "GUARD_SCREEN": "s",
        "GUARD_SCREEN_SAFE_BELOW": "0.1",
        "GUARD_SCREEN_UNSAFE_ABOVE": "0.9",
    }
    environment = needed | {f"GUARD_{field.name.upper()}": str(wanted)}
    assert getattr(load_settings({}, environment), field.name) == wanted


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"screen": Path("s")}, "screen"),  # it would answer nothing
        ({"screen_safe_below": 0.1}, "screen"),
        ({"screen": Path("g"), "screen_safe_below": 0.1}, "screen"),
        ({"screen": Path("s"), "screen_safe_below": 0.1, "guard": None, "instruct": Path("i")}, "screen"),
        ({"screen": Path("s"), "screen_safe_below": 0.6}, "screen_safe_below"),
        ({"screen": Path("s"), "screen_safe_below": float("nan")}, "screen_safe_below"),
        ({"screen": Path("s"), "screen_unsafe_above": 0.4}, "screen_unsafe_above"),
        ({"screen": Path("s"), "screen_unsafe_above": 1.1}, "screen_unsafe_above"),
        ({"screen_threshold": 1.0}, "screen_threshold"),
    ],
)
def test_a_screen_needs_thresholds_in_order_and_a_guard(values: dict[str, Any], name: str) -> None:
    with pytest.raises(SettingsError, match=rf"^{name}\b"):
        Settings(**(GUARD | values))


def test_there_is_no_screen_unless_it_is_asked_for() -> None:
    assert Settings(**GUARD).screen_rules is None
    rules = Settings(**GUARD, screen=Path("s"), screen_safe_below=0.1, screen_threshold=0.4).screen_rules
    assert rules == ScreenRules(0.1, 1.0, 0.4)


def test_an_empty_file_is_no_settings(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert load_settings(GUARD, {}, tmp_path / "empty.yaml") == Settings(**GUARD)


@pytest.mark.parametrize(
    ("flags", "environment", "text", "field"),
    [
        ({"thread": 1}, {}, "", "thread"),
        ({}, {"GUARD_THREAD": "1"}, "", "thread"),
        ({}, {}, "thread: 1", "thread"),
        ({}, {}, "7: 1", "7"),
        ({}, {"GUARD_THREADS": "two"}, "", "threads"),
        ({}, {"GUARD_ADMIN": "maybe"}, "", "admin"),
        ({}, {"GUARD_GUARD": ""}, "", "guard"),
        ({}, {}, "threads: 1.5", "threads"),
        ({}, {}, "threads: true", "threads"),
        ({}, {}, "admin: 1", "admin"),
        ({}, {}, "guard: [a]", "guard"),
        ({}, {}, "- a", "config"),
        ({}, {}, "a: b: c", "config"),
        ({}, {}, "!!python/object/apply:os.system ['false']", "config"),
    ],
)
def test_unknown_and_mistyped_keys_are_named(
    tmp_path: Path, flags: dict[str, Any], environment: dict[str, str], text: str, field: str
) -> None:
    config = tmp_path / "guard.yaml"
    config.write_text(text)
    with pytest.raises(SettingsError) as caught:
        load_settings(GUARD | flags, environment, config)
    assert str(caught.value.field) == field


def test_the_file_must_be_readable(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"config: .*missing.yaml: No such file"):
        load_settings(GUARD, {}, tmp_path / "missing.yaml")
    for content, problem in {
        b"guard: \xff": "not UTF-8",
        b"threads: 2024-99-99": "not YAML",
        b"threads: 1\nthreads: 2": r"threads: is given twice \(line 2\)",
        b"[" * 5000: "not YAML",
        b"- threads": "expected a mapping",
        b"drain_delay_s: 1" + b"0" * 400: "drain_delay_s: expected a number",
    }.items():
        (tmp_path / "wrong.yaml").write_bytes(content)
        with pytest.raises(SettingsError, match=problem):
            load_settings(GUARD, {}, tmp_path / "wrong.yaml")


def test_variables_of_kubernetes_services_are_not_settings() -> None:
    environment = {
        "GUARD_SERVICE_HOST": "10.0.0.1",
        "GUARD_SERVICE_PORT": "50051",
        "GUARD_SERVICE_PORT_GRPC": "50051",
        "GUARD_PORT": "tcp://10.0.0.1:50051",
        "GUARD_PORT_50051_TCP": "tcp://10.0.0.1:50051",
        "GUARD_PORT_50051_TCP_ADDR": "10.0.0.1",
        "GUARD_CANARY_SERVICE_HOST": "10.0.0.2",
        "GUARD_CANARY_PORT_80_TCP_PROTO": "tcp",
    }
    assert load_settings(GUARD, environment) == Settings(**GUARD)
    assert not any(f"GUARD_{field.name.upper()}".endswith("_PORT") for field in dataclasses.fields(Settings))


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"guard": None}, "guard"),
        ({"max_queued": 0}, "max_queued"),
        ({"kv_cache_mib": -1}, "kv_cache_mib"),
        ({"max_message_mib": 0.0}, "max_message_mib"),
        ({"max_message_mib": float("nan")}, "max_message_mib"),
        ({"max_message_mib": 4096.0, "max_queued_mib": 4096.0}, "max_message_mib"),
        ({"max_queued_mib": 1.0}, "max_queued_mib"),
        ({"max_deadline_s": 1.0}, "max_deadline_s"),
        ({"max_tokens": 10}, "max_tokens"),
        ({"threads": -1}, "threads"),
        ({"grace_s": -1.0}, "grace_s"),
        ({"admin": True}, "admin"),
        ({"address": "0.0.0.0:50051"}, "address"),
        ({"address": "[::]:50051"}, "address"),
        ({"address": "guard.example:50051"}, "address"),
        ({"address": "127.0.0.1"}, "address"),
        ({"address": "127.0.0.1:70000"}, "address"),
        ({"address": "50051", "allow_insecure": True}, "address"),
    ],
)
def test_values_that_cannot_work(values: dict[str, Any], field: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings(**(GUARD | values))
    assert caught.value.field == field


def test_local_addresses() -> None:
    for address in ("127.0.0.1:1", "127.9.9.9:1", "localhost:1", "[::1]:1", "unix:/tmp/s", "unix-abstract:s"):
        assert is_local(address)
    for address in ("0.0.0.0:1", "[::]:1", "10.0.0.1:1", ":1", "example.org:1", "127.0.0.1.example.org:1"):
        assert not is_local(address)
    assert Settings(address="0.0.0.0:1", allow_insecure=True, **GUARD).allow_insecure


def test_units() -> None:
    settings = Settings(max_message_mib=0.5, max_queued_mib=2.0, kv_cache_mib=3, threads=2, max_queued=9, **GUARD)
    assert (settings.max_message_bytes, settings.max_queued_bytes) == (1 << 19, 2 << 20)
    engine = settings.engine
    assert (engine.threads, engine.max_queued, engine.kv_bytes) == (2, 9, 3 << 20)
