"""The YAML file of callers. callers.schema.json, beside this module, says the same to editors and other tools."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from guard.address import is_local
from guard.errors import InvalidInputError
from guard.policies import check_name
from server.auth.caller import SERVICES, Caller, Quota
from server.auth.keys import is_hash
from server.strict_yaml import load_file, mapping, number, parse, sequence, text

#: Signatures made with a private key. "none" and HMAC, whose key would be the public one, are not among them.
ALGORITHMS = frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"})
#: What of a certificate can name a caller.
CERTIFICATE_KINDS = ("uri:", "dns:", "subject:")
MAX_LEEWAY_S, MIN_REFRESH_S = 300.0, 10.0
MAX_PER_MINUTE = 1e12
_CALLER_FIELDS = {"keys", "certificates", "subjects", "policy", "admin", "services", "quota"}
_QUOTA_FIELDS = {"requests_per_minute", "bytes_per_minute", "tokens_per_minute", "concurrent"}
_OIDC_FIELDS = {"issuer", "audience", "jwks", "algorithms", "claim", "leeway_s", "refresh_s"}
T = TypeVar("T")


@dataclass(frozen=True)
class OidcSettings:
    """How tokens are verified. ``jwks`` is an https URL or a path. Times in seconds."""

    issuer: str
    audience: str
    jwks: str
    algorithms: tuple[str, ...] = ("RS256",)
    claim: str = "sub"
    leeway_s: float = 30.0
    refresh_s: float = 300.0


@dataclass(frozen=True)
class Callers:
    """What a file says: all callers by name, and whose credentials are whose.

    ``keys`` by hash, ``certificates`` by "kind:value", ``subjects`` by the value of the token's claim.
    """

    callers: Mapping[str, Caller] = field(default_factory=dict)
    keys: Mapping[str, Caller] = field(default_factory=dict)
    certificates: Mapping[str, Caller] = field(default_factory=dict)
    subjects: Mapping[str, Caller] = field(default_factory=dict)
    oidc: OidcSettings | None = None

    @property
    def policies(self) -> dict[str, str]:
        """Caller's name to its policy, of those that have one."""
        return {caller.name: caller.policy for caller in self.callers.values() if caller.policy is not None}


def load_callers(path: Path, policies: Collection[str]) -> Callers:
    """The callers of the file; ``policies`` are the names there are. Raises SettingsError naming file and place."""
    return load_file("callers", path, lambda content: read_callers(content, policies, path.parent))


def read_callers(content: str, policies: Collection[str], directory: Path = Path()) -> Callers:
    """The callers that ``content`` gives; a relative path in it is below ``directory``.

    Raises InvalidInputError with the path of what is wrong.
    """
    value = mapping("the file", parse(content), {"callers", "oidc"})
    oidc = _oidc(value["oidc"], directory) if "oidc" in value else None
    callers: dict[str, Caller] = {}
    keys: dict[str, Caller] = {}
    certificates: dict[str, Caller] = {}
    subjects: dict[str, Caller] = {}
    for name, given in mapping("callers", value.get("callers", {})).items():
        where = f"callers.{name}"
        check_name(f"callers.{name[:64]}", name)
        fields = mapping(where, given, _CALLER_FIELDS)
        caller = callers[name] = _caller(name, where, fields, policies)
        _add(keys, where, "keys", fields, is_hash, 'a hash as "guard keys new" prints it', caller)
        _add(certificates, where, "certificates", fields, _is_certificate, "uri:..., dns:... or subject:...", caller)
        _add(subjects, where, "subjects", fields, bool, "a token's subject", caller)
        if oidc is None and fields.get("subjects"):
            raise InvalidInputError(f"{where}.subjects", "needs oidc, which says how tokens are verified")
    return Callers(callers, keys, certificates, subjects, oidc)


def _caller(name: str, where: str, fields: Mapping[str, Any], policies: Collection[str]) -> Caller:
    admin = fields.get("admin", False)
    if not isinstance(admin, bool):
        raise InvalidInputError(f"{where}.admin", "expected true or false")
    policy = text(f"{where}.policy", fields["policy"]) if "policy" in fields else None
    if policy is not None and policy not in policies:
        raise InvalidInputError(f"{where}.policy", "there is no policy of that name")
    services = set(SERVICES)
    if "services" in fields:
        services = set(_texts(f"{where}.services", fields["services"]))
        if services - set(SERVICES):
            raise InvalidInputError(f"{where}.services", f"expected some of {', '.join(SERVICES)}")
    return Caller(name, admin, policy, _quota(f"{where}.quota", fields.get("quota", {})), frozenset(services))


def _quota(where: str, value: Any) -> Quota:
    given = mapping(where, value, _QUOTA_FIELDS)
    limits: dict[str, float] = {}
    for name, limit in given.items():
        limits[name] = number(f"{where}.{name}", limit)
        if not 0 < limits[name] <= MAX_PER_MINUTE:
            raise InvalidInputError(f"{where}.{name}", f"expected a number above 0, at most {MAX_PER_MINUTE:g}")
    concurrent = limits.pop("concurrent", None)
    if concurrent is not None and (concurrent < 1 or concurrent != int(concurrent)):
        raise InvalidInputError(f"{where}.concurrent", "expected a whole number, 1 or more")
    if limits.get("requests_per_minute", 1.0) < 1:
        raise InvalidInputError(f"{where}.requests_per_minute", "expected 1 or more")
    return Quota(**limits, concurrent=None if concurrent is None else int(concurrent))


def _add(
    known: dict[str, Caller],
    where: str,
    kind: str,
    fields: Mapping[str, Any],
    is_good: Callable[[str], bool],
    expected: str,
    caller: Caller,
) -> None:
    """Add the credentials of ``caller``. A bad one is not repeated: it may be a key that somebody forgot to hash."""
    for index, given in enumerate(_texts(f"{where}.{kind}", fields.get(kind, []))):
        place = f"{where}.{kind}[{index}]"
        if not is_good(given):
            raise InvalidInputError(place, f"expected {expected}")
        if given in known:
            raise InvalidInputError(place, "is there already: a credential belongs to one caller")
        known[given] = caller


def _is_certificate(given: str) -> bool:
    return given.startswith(CERTIFICATE_KINDS) and bool(given.partition(":")[2])


def _oidc(value: Any, directory: Path) -> OidcSettings:
    given = mapping("oidc", value, _OIDC_FIELDS)
    named: dict[str, Any] = {}
    for name in ("issuer", "audience", "jwks", "claim"):
        if name in given:
            named[name] = text(f"oidc.{name}", given[name])
        if name in ("issuer", "audience", "jwks") or name in given:
            _check(f"oidc.{name}", bool(named.get(name)), "is required")
    named["jwks"] = _source(named["jwks"], directory)
    if "algorithms" in given:
        named["algorithms"] = tuple(_texts("oidc.algorithms", given["algorithms"]))
        good = bool(named["algorithms"]) and ALGORITHMS.issuperset(named["algorithms"])
        _check("oidc.algorithms", good, f"expected some of {', '.join(sorted(ALGORITHMS))}")
    for name in ("leeway_s", "refresh_s"):
        if name in given:
            named[name] = number(f"oidc.{name}", given[name])
    settings = OidcSettings(**named)
    _check("oidc.leeway_s", 0 <= settings.leeway_s <= MAX_LEEWAY_S, f"expected 0 to {MAX_LEEWAY_S:g}")
    good = MIN_REFRESH_S <= settings.refresh_s <= 86_400
    _check("oidc.refresh_s", good, f"expected {MIN_REFRESH_S:g} to 86400")
    return settings


def _source(given: str, directory: Path) -> str:
    """Keys that travel in the clear could be anybody's, so http is for this machine alone."""
    if "://" not in given:
        return str(directory / given)
    url = urlsplit(given)
    local = url.scheme == "http" and is_local(f"{url.hostname}:0")
    _check("oidc.jwks", url.scheme == "https" or local, "expected an https URL or the path of a file")
    return given


def _texts(where: str, value: Any) -> list[str]:
    return [text(f"{where}[{index}]", item) for index, item in enumerate(sequence(where, value))]


def _check(where: str, good: bool, problem: str) -> None:
    if not good:
        raise InvalidInputError(where, problem)
