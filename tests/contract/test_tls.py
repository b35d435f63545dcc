"""TLS over real sockets, with certificates made here. Failure test 23: a wrong authority, no client certificate."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from guard.cli import main
from guard.client import GuardClient, tls_credentials
from guard.errors import InvalidInputError
from guard.v1.model_pb2 import ListModelsRequest
from guard.verdict import Verdict
from server.auth import keys
from server.errors import SettingsError

from .certificates import Authority, Pair, channel_credentials
from .fakes import UNSAFE_MARK, FakeModels
from .running import Running, question, refused, running

AUTHORITY = Authority()
CALLERS = """
callers:
  web: {certificates: ["uri:spiffe://test/web"], services: [moderation]}
  mail: {certificates: ["dns:mail.test"], admin: true}
  cron: {certificates: ["subject:CN=cron"]}
  keyed: {keys: ["%s"]}
"""


@asynccontextmanager
async def serving(models: FakeModels, directory: Path, **settings: Any) -> AsyncIterator[Running]:
    """A server whose own channel brings no certificate."""
    paths = AUTHORITY.server().write(directory)
    async with running(models, **(paths | settings)) as started, connected(started) as secure:
        yield secure


@asynccontextmanager
async def connected(
    server: Running, client: Pair | None = None, authority: Authority = AUTHORITY
) -> AsyncIterator[Running]:
    """The same server over a connection of its own."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    credentials = channel_credentials(authority, client)
    async with grpc.aio.secure_channel(server.app.address, credentials, options=options) as channel:
        yield Running(server.app, channel)


async def fails_to_connect(server: Running) -> bool:
    try:
        await server.moderation.Classify(question("x"), timeout=5)
    except grpc.aio.AioRpcError as error:
        return error.code() is grpc.StatusCode.UNAVAILABLE
    return False


async def test_calls_are_encrypted(models: FakeModels, tmp_path: Path) -> None:
    """Failure test 23: a client that trusts another authority does not talk to the server, nor does one without TLS."""
    async with serving(models, tmp_path) as server:
        assert (await server.moderation.Classify(question(UNSAFE_MARK))).verdict == 2
        assert await server.serving()
        async with connected(server, authority=Authority("another")) as stranger:
            assert await fails_to_connect(stranger)
        async with grpc.aio.insecure_channel(server.app.address) as channel:
            assert await fails_to_connect(Running(server.app, channel))


async def test_client_certificates_are_demanded(models: FakeModels, tmp_path: Path) -> None:
    """Failure test 23: without a client certificate, or with one of another authority, there is no connection."""
    authority = AUTHORITY.write(tmp_path / "ca.crt")
    async with serving(models, tmp_path, tls_client_ca=authority) as server:
        assert await fails_to_connect(server)
        async with connected(server, Authority("another").client("web", uri="spiffe://test/web")) as forged:
            assert await fails_to_connect(forged)
        async with connected(server, AUTHORITY.client("anybody")) as known:
            assert (await known.moderation.Classify(question(UNSAFE_MARK))).verdict == 2


async def test_a_certificate_names_its_caller(models: FakeModels, tmp_path: Path) -> None:
    key = keys.new_key()
    callers = tmp_path / "callers.yaml"
    callers.write_text(CALLERS % keys.key_hash(key))
    authority = AUTHORITY.write(tmp_path / "ca.crt")
    async with serving(models, tmp_path, tls_client_ca=authority, callers=callers) as server:
        for client in (
            AUTHORITY.client("any", uri="spiffe://test/web"),
            AUTHORITY.client("any", dns="mail.test"),
            AUTHORITY.client("cron"),
        ):
            async with connected(server, client) as known:
                assert (await known.moderation.Classify(question(UNSAFE_MARK))).verdict == 2
        async with connected(server, AUTHORITY.client("any", uri="spiffe://test/web")) as web:
            answer = await refused(web.models.ListModels(ListModelsRequest()))
            assert answer.info.reason == "NOT_PERMITTED"
        for client in (
            AUTHORITY.client("any"),
            AUTHORITY.client("web", dns="spiffe.test"),
            AUTHORITY.client("mail.test"),  # a subject is no DNS name
            AUTHORITY.client("any", uri="spiffe://test/web/more"),
            AUTHORITY.client("cron", dns="mail.test"),  # of two callers
        ):
            async with connected(server, client) as unknown:
                answer = await refused(unknown.moderation.Classify(question("x")))
                assert (answer.code, answer.info.reason) == (grpc.StatusCode.UNAUTHENTICATED, "CREDENTIALS_INVALID")
        async with connected(server, AUTHORITY.client("cron")) as cron:
            wrong = cron.moderation.Classify(question("x"), metadata=(("x-api-key", keys.new_key()),))
            assert (await refused(wrong)).code is grpc.StatusCode.UNAUTHENTICATED
            right = cron.moderation.Classify(question("x"), metadata=(("x-api-key", key),))
            assert (await right).verdict == 1


async def test_certificates_are_replaced_without_a_restart(
    models: FakeModels, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    fresh = Authority("next year's")
    async with serving(models, tmp_path) as server, connected(server) as old:
        assert (await old.moderation.Classify(question("x"))).verdict == 1
        next_pair = fresh.server()
        (tmp_path / "tls.crt").write_bytes(next_pair.certificate)  # the key is not there yet
        async with connected(server) as still:
            assert (await still.moderation.Classify(question("x"))).verdict == 1
        assert "certificate_kept" in caplog.text
        (tmp_path / "tls.key").write_bytes(next_pair.key)
        async with connected(server, authority=fresh) as renewed:
            assert (await renewed.moderation.Classify(question("x"))).verdict == 1
        assert "certificate_changed" in caplog.text
        async with connected(server) as late:
            assert await fails_to_connect(late)
        assert (await old.moderation.Classify(question("x"))).verdict == 1  # a connection that is there lives on


@pytest.mark.parametrize(
    ("file", "contents", "problem"),
    [
        ("tls.key", AUTHORITY.client("x").key, "tls_key: .* is not the key of the certificate"),
        ("tls.key", b"", "tls_key: .* expected a private key"),
        ("tls.crt", b"-----BEGIN CERTIFICATE-----\nYQ==\n-----END CERTIFICATE-----\n", "tls_cert: .* expected cert"),
        ("ca.crt", b"nothing", "tls_client_ca: .* expected cert"),
        ("tls.key", None, "tls_key: .* No such file"),
    ],
)
async def test_files_that_do_not_hold_stop_the_start(
    models: FakeModels, tmp_path: Path, file: str, contents: bytes | None, problem: str
) -> None:
    paths: dict[str, Any] = AUTHORITY.server().write(tmp_path) | {"tls_client_ca": AUTHORITY.write(tmp_path / "ca.crt")}
    (tmp_path / file).unlink() if contents is None else (tmp_path / file).write_bytes(contents)
    with pytest.raises(SettingsError, match=problem):
        async with running(models, **paths):
            pass


async def test_client_and_command(
    models: FakeModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    key = keys.new_key()
    callers, key_file = tmp_path / "callers.yaml", tmp_path / "key"
    callers.write_text(CALLERS % keys.key_hash(key))
    authority, client = AUTHORITY.write(tmp_path / "ca.crt"), AUTHORITY.client("nobody")
    for name, data in (("client.crt", client.certificate), ("client.key", client.key)):
        (tmp_path / name).write_bytes(data)
    async with serving(models, tmp_path, tls_client_ca=authority, callers=callers) as server:
        address = server.app.address

        def ask() -> None:
            credentials = tls_credentials(AUTHORITY.certificate, client.certificate, client.key)
            with GuardClient(address, credentials=credentials, api_key=key) as caller:
                assert caller.classify(UNSAFE_MARK).verdict is Verdict.UNSAFE

        def command(*options: str) -> tuple[int, str]:
            tls = ["--tls-ca", str(authority), "--tls-cert", f"{tmp_path}/client.crt"]
            tls += ["--tls-key", f"{tmp_path}/client.key", "--address", address]
            return main(["classify", *tls, *options, UNSAFE_MARK]), capsys.readouterr().err

        await asyncio.to_thread(ask)
        status, error = await asyncio.to_thread(command)
        assert (status, "UNAUTHENTICATED" in error) == (1, True)
        key_file.write_text(f"{key}\n")
        assert await asyncio.to_thread(command, "--api-key-file", str(key_file)) == (3, "")
        monkeypatch.setenv("GUARD_API_KEY", key)
        assert await asyncio.to_thread(command) == (3, "")
        key_file.write_text("\n")
        status, error = await asyncio.to_thread(command, "--api-key-file", str(key_file))
        assert (status, "holds no key" in error) == (1, True)


def test_half_a_client_certificate_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="tls_key"):
        tls_credentials(None, b"certificate")
    with pytest.raises(InvalidInputError, match="tls_cert"):
        tls_credentials(None, None, b"key")
