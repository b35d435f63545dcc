from __future__ import annotations

import pytest

from guard.errors import PermissionDeniedError
from guard.v1 import generation_pb2, model_pb2, moderation_pb2
from server.auth.caller import SERVICES, Caller
from server.auth.permissions import check

METHODS = {
    f"/{service.full_name}/{method.name}"
    for file in (moderation_pb2, generation_pb2, model_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
ADMIN = {"/guard.v1.ModelService/LoadModel", "/guard.v1.ModelService/UnloadModel"}


def allowed(caller: Caller) -> set[str]:
    found = set()
    for method in METHODS:
        try:
            check(caller, method)
            found.add(method)
        except PermissionDeniedError as error:
            assert method in str(error)
    return found


def test_every_service_of_the_contract_has_a_name() -> None:
    assert {method.split("/")[1] for method in METHODS} == set(SERVICES.values())


def test_who_may_call_what() -> None:
    assert allowed(Caller("c")) == METHODS - ADMIN
    assert allowed(Caller("c", admin=True)) == METHODS
    assert allowed(Caller("c", services=frozenset())) == set()
    assert allowed(Caller("c", admin=True, services=frozenset())) == ADMIN
    for name, service in SERVICES.items():
        wanted = {method for method in METHODS - ADMIN if f"/{service}/" in method}
        assert allowed(Caller("c", services=frozenset({name}))) == wanted


def test_what_nobody_thought_of_is_for_admins() -> None:
    for method in ("/guard.v1.ModelService/DropAll", "/guard.v1.OtherService/Do"):
        with pytest.raises(PermissionDeniedError) as caught:
            check(Caller("c"), method)
        assert caught.value.reason == "ADMIN_REQUIRED"
        check(Caller("c", admin=True), method)
