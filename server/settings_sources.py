"""Reading the settings from where they may come from: flags over ``GUARD_*`` variables over a YAML file."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

from server.errors import SettingsError
from server.settings import Settings
from server.strict_yaml import load_file, parse

PREFIX = "GUARD_"
#: For the client, which may run in the same container.
CLIENT_VARIABLES = frozenset({"GUARD_API_KEY"})
#: Kubernetes puts GUARD_SERVICE_HOST, GUARD_PORT_50051_TCP_ADDR and so on into every pod beside a Service "guard".
_KUBERNETES = re.compile(r"_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_\w+)?)?)$")


def load_settings(flags: Mapping[str, Any], environment: Mapping[str, str], config: Path | None = None) -> Settings:
    """Settings from all four sources. ``flags`` holds values by field name; None means "not given".

    Raises SettingsError naming the unknown or wrong key, and where it came from.
    """
    return load_with_sources(flags, environment, config)[0]


def load_with_sources(
    flags: Mapping[str, Any], environment: Mapping[str, str], config: Path | None = None
) -> tuple[Settings, dict[str, str]]:
    """As ``load_settings``, with where each setting came from: "flags", "environment", the file's path, "default"."""
    values: dict[str, Any] = {}
    sources = dict.fromkeys(_KINDS, "default")
    for source, found in (
        (str(config), _read_yaml(config)),
        ("environment", _from_environment(environment)),
        ("flags", {name: value for name, value in flags.items() if value is not None}),
    ):
        for name, value in found.items():
            values[name] = _typed(name, value, source)
            sources[name] = source
    return Settings(**values), sources


def _read_yaml(config: Path | None) -> dict[str, Any]:
    if config is None:
        return {}
    value = load_file("config", config, parse)
    if not isinstance(value, dict):
        raise SettingsError("config", f"{config}: expected a mapping of settings")
    return value


def _from_environment(environment: Mapping[str, str]) -> dict[str, str]:
    return {
        name.removeprefix(PREFIX).lower(): value
        for name, value in environment.items()
        if name.startswith(PREFIX) and name not in CLIENT_VARIABLES and not _KUBERNETES.search(name)
    }


def _typed(name: str, value: Any, source: str) -> Any:
    """``value`` as the type of the field ``name``. Text is parsed, as variables have nothing else."""
    kind = _KINDS.get(name)
    if kind is None:
        raise SettingsError(name, f"there is no such setting (in {source}); there are: {', '.join(_KINDS)}")
    if isinstance(value, str):
        try:
            return _parse(kind, value)
        except ValueError:
            pass
    elif kind is float and type(value) is int:
        with suppress(OverflowError):
            return float(value)
    elif type(value) is kind or (kind is Path and isinstance(value, Path)):
        return value
    raise SettingsError(name, f"expected {_NAMES[kind]} (in {source})")


def _parse(kind: type, text: str) -> Any:
    if kind is bool:
        if text.lower() not in ("true", "false", "1", "0"):
            raise ValueError(text)
        return text.lower() in ("true", "1")
    if kind is Path and not text:
        raise ValueError(text)
    return kind(text)


def _field_kinds() -> dict[str, type]:
    """Field name to its type, less the None of optional ones."""
    kinds: dict[str, type] = {}
    hints = typing.get_type_hints(Settings)
    for field in fields(Settings):
        hint = hints[field.name]
        kinds[field.name] = typing.get_args(hint)[0] if isinstance(hint, types.UnionType) else hint
    return kinds


_KINDS = _field_kinds()
_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path"}
