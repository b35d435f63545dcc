"""What a caller may call. Whatever is not listed here is for admins, so a new method is closed until it is opened."""

from __future__ import annotations

from guard.errors import PermissionDeniedError
from server.auth.caller import SERVICES, Caller

#: Envoy's service asks for judgements alone, so whoever may have those may call it.
EXT_PROC = "envoy.service.ext_proc.v3.ExternalProcessor"

#: Methods of ModelService that read; the others change what is served.
_READING = {"ListModels", "GetModel"}
_NAMES = {full: name for name, full in SERVICES.items()} | {EXT_PROC: "moderation"}


def check(caller: Caller, method: str) -> None:
    """Raises PermissionDeniedError naming ``method`` (``/package.Service/Method``) unless ``caller`` may call it."""
    _, service, name = method.split("/")
    known = _NAMES.get(service)
    if known is None or (known == "models" and name not in _READING):
        if not caller.admin:
            raise PermissionDeniedError(f"{method}: for admins only", "ADMIN_REQUIRED")
    elif known not in caller.services:
        raise PermissionDeniedError(f"{method}: not among the services of this caller")
