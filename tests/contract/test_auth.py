"""Who may call, over a real socket. Failure test 23: no credential that is wrong, old or forged gets in."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import ssl
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from guard.client import AsyncGuardClient, GuardClient, NotPermittedError, ServerBusyError
from guard.errors import InvalidInputError
from guard.v1.generation_pb2 import GenerateRequest, TagRequest
from guard.v1.model_pb2 import ListModelsRequest, LoadModelRequest, UnloadModelRequest
from guard.v1.moderation_pb2 import ListPoliciesRequest
from guard.verdict import DecidedBy, Verdict
from server.auth import authenticator, key_set, keys

from .certificates import Authority
from .fakes import UNSAFE_MARK, FakeModels
from .issuer import AUDIENCE, ISSUER, SUBJECT, Issuer, serving
from .running import Running, question, refused, running, until

KEYS = {name: keys.new_key() for name in ("news", "chat", "root", "spare")}
FILE = f"""
callers:
  news:
    keys: ["{keys.key_hash(KEYS["news"])}"]
    services: [moderation]
    policy: lenient
  chat:
    keys: ["{keys.key_hash(KEYS["chat"])}"]
  root:
    keys: ["{keys.key_hash(KEYS["root"])}"]
    admin: true
  limited:
    keys: ["{keys.key_hash(KEYS["spare"])}"]
    quota: {{requests_per_minute: 2}}
"""
OIDC = f"""
oidc:
  issuer: {ISSUER}
  audience: {AUDIENCE}
  algorithms: [RS256, ES256]
  leeway_s: 5
  jwks: """
POLICIES = "policies: {standard: {threshold: 0.5}, lenient: {threshold: 0.9999}}\ndefault: standard\n"


@pytest.fixture
def callers(tmp_path: Path) -> Path:
    path = tmp_path / "callers.yaml"
    path.write_text(FILE)
    (tmp_path / "policies.yaml").write_text(POLICIES)
    return path


@pytest.fixture
async def server(models: FakeModels, callers: Path) -> AsyncIterator[Running]:
    async with running(models, callers=callers, policies=callers.parent / "policies.yaml") as started:
        yield started


@pytest.fixture(scope="module")
def issuer_keys() -> dict[str, Any]:
    return Issuer().keys  # making RSA keys takes a second


@pytest.fixture
def issuer(issuer_keys: dict[str, Any]) -> Iterator[Issuer]:
    made = Issuer.__new__(Issuer)
    made.keys, made.published, made.down, made.asked = dict(issuer_keys), set(issuer_keys), False, 0
    yield made


@asynccontextmanager
async def with_tokens(models: FakeModels, callers: Path, issuer: Issuer) -> AsyncIterator[Running]:
    """A server that takes tokens of ``issuer``."""
    with serving(issuer) as url:
        own = f'  chat:\n    subjects: ["{SUBJECT}"]\n'
        callers.write_text(FILE.replace("  chat:\n", own) + OIDC + url)
        async with running(models, callers=callers, policies=callers.parent / "policies.yaml") as started:
            yield started


def bearer(credential: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {credential}"),)


async def classify(server: Running, credential: str, text: str = "bread") -> Any:
    return await server.moderation.Classify(question(text), metadata=bearer(credential))


async def test_a_key_opens_the_door(server: Running) -> None:
    answer = await classify(server, KEYS["chat"])
    assert answer.verdict == 1
    answer = await server.moderation.Classify(question(UNSAFE_MARK), metadata=(("x-api-key", KEYS["chat"]),))
    assert (answer.verdict, answer.policy_name) == (2, "standard")


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ((), "CREDENTIALS_MISSING"),
        (bearer(keys.new_key()), "CREDENTIALS_INVALID"),
        (bearer(KEYS["chat"][:-1]), "CREDENTIALS_INVALID"),
        (bearer(keys.key_hash(KEYS["chat"])), "CREDENTIALS_INVALID"),
        ((("authorization", KEYS["chat"]),), "CREDENTIALS_INVALID"),
        ((("authorization", f"Basic {KEYS['chat']}"),), "CREDENTIALS_INVALID"),
        ((("authorization", "Bearer "),), "CREDENTIALS_INVALID"),
        ((("x-api-key", ""),), "CREDENTIALS_INVALID"),
        ((*bearer(KEYS["chat"]), ("x-api-key", KEYS["chat"])), "CREDENTIALS_INVALID"),
    ],
)
async def test_everything_else_is_refused_everywhere(server: Running, metadata: Any, reason: str) -> None:
    """Failure test 23: an unknown key is UNAUTHENTICATED, and no key is ever repeated."""
    calls = [
        server.moderation.Classify(question("x"), metadata=metadata),
        server.moderation.ListPolicies(ListPoliciesRequest(), metadata=metadata),
        server.generation.Generate(GenerateRequest(prompt="x"), metadata=metadata),
        server.generation.Tag(TagRequest(), metadata=metadata),
        server.models.ListModels(ListModelsRequest(), metadata=metadata),
        server.models.UnloadModel(UnloadModelRequest(name="tiny-guard"), metadata=metadata),
    ]
    for call in calls:
        answer = await refused(call)
        assert (answer.code, answer.info.reason) == (grpc.StatusCode.UNAUTHENTICATED, reason)
        for credential in (value.partition(" ")[2] or value for _, value in metadata):
            assert len(credential) < 9 or credential not in answer.everything
    for stream in (
        server.moderation.StreamClassify(iter([]), metadata=metadata),
        server.generation.StreamGenerate(GenerateRequest(prompt="x"), metadata=metadata),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            [response async for response in stream]
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_health_and_reflection_stay_open(server: Running, models: FakeModels, callers: Path) -> None:
    assert await server.serving()
    reflect = server.channel.stream_stream("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")
    stream = reflect(iter([b"\x3a\x00"]))  # list_services: ""
    assert b"guard.v1.ModerationService" in await anext(aiter(stream))
    async with running(models, callers=callers, reflection=False, policies=callers.parent / "policies.yaml") as closed:
        reflect = closed.channel.stream_stream("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            [answer async for answer in reflect(iter([b"\x3a\x00"]))]
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_callers_may_do_what_is_theirs(server: Running) -> None:
    news, root = bearer(KEYS["news"]), bearer(KEYS["root"])
    assert (await classify(server, KEYS["news"])).verdict == 1
    for call in (
        server.generation.Generate(GenerateRequest(prompt="x"), metadata=news),
        server.models.ListModels(ListModelsRequest(), metadata=news),
    ):
        answer = await refused(call)
        assert (answer.code, answer.info.reason) == (grpc.StatusCode.PERMISSION_DENIED, "NOT_PERMITTED")
        assert "/guard.v1." in answer.message
        assert KEYS["news"] not in answer.everything
    for name in ("news", "chat"):
        for call in (
            server.models.UnloadModel(UnloadModelRequest(name="tiny-guard"), metadata=bearer(KEYS[name])),
            server.models.LoadModel(LoadModelRequest(bundle="x"), metadata=bearer(KEYS[name])),
        ):
            answer = await refused(call)
            assert (answer.code, answer.info.reason) == (grpc.StatusCode.PERMISSION_DENIED, "ADMIN_REQUIRED")
    # An admin gets as far as the server's own switch, which is off.
    answer = await refused(server.models.UnloadModel(UnloadModelRequest(name="tiny-guard"), metadata=root))
    assert answer.info.reason == "ADMIN_DISABLED"
    assert (await server.models.ListModels(ListModelsRequest(), metadata=root)).models


async def test_a_caller_has_a_policy_of_its_own(server: Running) -> None:
    assert (await classify(server, KEYS["chat"], UNSAFE_MARK)).policy_name == "standard"
    own = await classify(server, KEYS["news"], UNSAFE_MARK)
    assert (own.policy_name, own.verdict) == ("lenient", 1)
    shown = await server.moderation.ListPolicies(ListPoliciesRequest(), metadata=bearer(KEYS["news"]))
    assert [each.name for each in shown.policies if each.is_default] == ["lenient"]


async def test_a_quota_ends_a_caller_and_not_the_others(server: Running) -> None:
    for _ in range(2):
        await classify(server, KEYS["spare"])
    answer = await refused(classify(server, KEYS["spare"]))
    assert (answer.code, answer.info.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED")
    assert answer.retry_after_s is not None and 0 < answer.retry_after_s <= 30
    assert answer.pushback_ms is not None
    assert (await classify(server, KEYS["chat"])).verdict == 1


async def test_the_file_is_followed(server: Running, callers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Failure test 23: a key is taken away and another one added while the server runs; a broken file is not used."""
    monkeypatch.setattr(authenticator, "POLL_S", 0.02)
    assert server.app.authenticator is not None
    fresh = keys.new_key()
    await refused(classify(server, fresh))
    callers.write_text(FILE.replace(keys.key_hash(KEYS["chat"]), keys.key_hash(fresh)).replace("lenient", "standard"))
    await asyncio.sleep(0.01)
    await server.app.authenticator.reload()
    assert (await classify(server, fresh)).verdict == 1
    assert (await classify(server, KEYS["news"], UNSAFE_MARK)).verdict == 2  # its policy is another now
    assert (await refused(classify(server, KEYS["chat"]))).code is grpc.StatusCode.UNAUTHENTICATED
    for broken in ("callers: [", "callers: {chat: {keys: [gk_plain]}}", "callers: {chat: {policy: missing}}"):
        callers.write_text(broken)
        assert not await server.app.authenticator.reload()
        assert (await classify(server, fresh)).verdict == 1
    callers.unlink()
    assert not await server.app.authenticator.reload()
    assert (await classify(server, fresh)).verdict == 1


async def test_the_file_is_looked_at_without_being_told(
    models: FakeModels, callers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(authenticator, "POLL_S", 0.02)
    async with running(models, callers=callers, policies=callers.parent / "policies.yaml") as server:
        await classify(server, KEYS["chat"])
        callers.write_text("callers: {}")
        await until(lambda: server.app.authenticator is not None and not server.app.authenticator.callers)
        assert (await refused(classify(server, KEYS["chat"]))).code is grpc.StatusCode.UNAUTHENTICATED


async def test_keys_are_compared_in_constant_time(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Failure test 23: every hash is looked at, by hmac.compare_digest, whichever of them is right."""
    compared: list[tuple[Any, Any]] = []
    compare = hmac.compare_digest

    def recorded(left: Any, right: Any) -> bool:
        compared.append((left, right))
        return compare(left, right)

    monkeypatch.setattr(hmac, "compare_digest", recorded)
    for name in ("news", "spare"):
        compared.clear()
        await classify(server, KEYS[name])
        assert len(compared) == 4
        assert {left for left, _ in compared} == {keys.key_hash(KEYS[name])}
    compared.clear()
    await refused(classify(server, keys.new_key()))
    assert len(compared) == 4


async def test_tokens(models: FakeModels, callers: Path, issuer: Issuer) -> None:
    async with with_tokens(models, callers, issuer) as server:
        for kid in ("rsa", "ec"):
            assert (await classify(server, issuer.token(kid))).verdict == 1
        assert (await classify(server, issuer.token(aud=["other", AUDIENCE], nbf=None))).verdict == 1
        assert (await classify(server, issuer.token(exp=int(time.time()) - 2))).verdict == 1  # within the leeway
        assert (await classify(server, KEYS["news"])).verdict == 1


def forged_hs256(issuer: Issuer) -> str:
    """A token whose HMAC key is the issuer's public key, which everybody has: the classic confusion of algorithms."""
    public = issuer.keys["rsa"].public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    payload = issuer.token().split(".")[1]
    header = encoded({"alg": "HS256", "typ": "JWT", "kid": "rsa"})
    signature = hmac.new(public, f"{header}.{payload}".encode(), hashlib.sha256).digest()
    return f"{header}.{payload}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"


def encoded(value: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def tampered(issuer: Issuer) -> str:
    header, payload, signature = issuer.token(sub="nobody").split(".")
    claims = json.loads(base64.urlsafe_b64decode(payload + "=="))
    return f"{header}.{encoded(claims | {'sub': SUBJECT})}.{signature}"


BAD_TOKENS: dict[str, tuple[Any, str]] = {
    "expired": (lambda issuer: issuer.token(exp=int(time.time()) - 60), "TOKEN_EXPIRED"),
    "not yet valid": (lambda issuer: issuer.token(nbf=int(time.time()) + 60), "CREDENTIALS_INVALID"),
    "issued in the future": (lambda issuer: issuer.token(iat=int(time.time()) + 60), "CREDENTIALS_INVALID"),
    "another audience": (lambda issuer: issuer.token(aud="other"), "CREDENTIALS_INVALID"),
    "another issuer": (lambda issuer: issuer.token(iss="https://other.test"), "CREDENTIALS_INVALID"),
    "alg none": (lambda issuer: issuer.token(algorithm="none"), "CREDENTIALS_INVALID"),
    "alg none, a signature of another": (
        lambda issuer: issuer.token(algorithm="none") + issuer.token().split(".")[2],
        "CREDENTIALS_INVALID",
    ),
    "HS256 with the public key": (forged_hs256, "CREDENTIALS_INVALID"),
    "an algorithm that is not pinned": (lambda issuer: issuer.token(algorithm="RS512"), "CREDENTIALS_INVALID"),
    "the algorithm of another key": (
        lambda issuer: issuer.token("rsa", key=issuer.keys["ec"], algorithm="ES256"),
        "CREDENTIALS_INVALID",
    ),
    "unknown kid": (
        lambda issuer: issuer.token("new", key=issuer.keys["rsa"], algorithm="RS256"),
        "CREDENTIALS_INVALID",
    ),
    "no kid": (lambda issuer: issuer.token(None), "CREDENTIALS_INVALID"),
    "another key": (
        lambda issuer: issuer.token(key=rsa.generate_private_key(65537, 2048)),
        "CREDENTIALS_INVALID",
    ),
    "changed claims": (tampered, "CREDENTIALS_INVALID"),
    "no exp": (lambda issuer: issuer.token(exp=None), "CREDENTIALS_INVALID"),
    "no iat": (lambda issuer: issuer.token(iat=None), "CREDENTIALS_INVALID"),
    "no aud": (lambda issuer: issuer.token(aud=None), "CREDENTIALS_INVALID"),
    "no iss": (lambda issuer: issuer.token(iss=None), "CREDENTIALS_INVALID"),
    "nobody's subject": (lambda issuer: issuer.token(sub="canary-subject"), "CREDENTIALS_INVALID"),
    "no subject": (lambda issuer: issuer.token(sub=None), "CREDENTIALS_INVALID"),
    "garbage": (lambda issuer: "a.b.c", "CREDENTIALS_INVALID"),
    "more garbage": (lambda issuer: "canary-canary-canary", "CREDENTIALS_INVALID"),
}


async def test_bad_tokens(
    models: FakeModels, callers: Path, issuer: Issuer, caplog: pytest.LogCaptureFixture, subtests: pytest.Subtests
) -> None:
    """Failure test 23: expired, early, of another audience or issuer, alg=none, HS256 with the public key, unknown kid
    and the like are UNAUTHENTICATED; nothing of a token is in an answer or a log.
    """
    async with with_tokens(models, callers, issuer) as server:
        for name, (make, reason) in BAD_TOKENS.items():
            with subtests.test(name):
                token = make(issuer)
                answer = await refused(classify(server, token))
                assert (answer.code, answer.info.reason) == (grpc.StatusCode.UNAUTHENTICATED, reason)
                for part in (*token.split("."), "canary"):
                    assert not part or (len(part) < 9 and part != "canary") or part not in answer.everything
                    assert not part or (len(part) < 9 and part != "canary") or part not in caplog.text
        assert (await classify(server, issuer.token())).verdict == 1


async def test_an_issuer_that_is_down(
    models: FakeModels, callers: Path, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Failure test 23: with the JWKS down, cached keys survive and new ones fail closed; once it is back they work."""
    monkeypatch.setattr(key_set, "MIN_INTERVAL_S", 0.2)
    async with with_tokens(models, callers, issuer) as server:
        assert (await classify(server, issuer.token())).verdict == 1
        issuer.down = True
        issuer.add("new")
        asked = issuer.asked
        await asyncio.sleep(0.25)
        assert (await refused(classify(server, issuer.token("new")))).code is grpc.StatusCode.UNAUTHENTICATED
        assert issuer.asked == asked + 1
        for _ in range(3):
            assert (await classify(server, issuer.token())).verdict == 1
        await asyncio.sleep(0.25)
        issuer.down = False
        assert (await classify(server, issuer.token("new"))).verdict == 1
        issuer.published.remove("rsa")
        await asyncio.sleep(0.25)
        await refused(classify(server, issuer.token("newer", key=issuer.keys["rsa"], algorithm="RS256")))
        assert (await refused(classify(server, issuer.token("rsa")))).code is grpc.StatusCode.UNAUTHENTICATED


async def test_an_issuer_that_was_never_up(models: FakeModels, callers: Path, issuer: Issuer) -> None:
    """Failure test 23: the server starts, keys work, tokens do not; junk makes it ask the issuer once an interval."""
    issuer.down = True
    async with with_tokens(models, callers, issuer) as server:
        assert (await classify(server, KEYS["chat"])).verdict == 1
        for index in range(5):
            token = issuer.token(f"kid-{index}", key=issuer.keys["rsa"], algorithm="RS256")
            assert (await refused(classify(server, token))).code is grpc.StatusCode.UNAUTHENTICATED
        assert issuer.asked == 1


async def test_keys_over_https(
    models: FakeModels, callers: Path, issuer: Issuer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Failure test 23: an issuer whose certificate is of an authority that nobody trusts has no keys for us."""
    authority = Authority()
    pair = authority.server().write(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair["tls_cert"], pair["tls_key"])
    with serving(issuer, context) as url:
        with pytest.raises(key_set.KeySetError):
            await asyncio.to_thread(key_set.read_source, url)
        monkeypatch.setenv("SSL_CERT_FILE", str(authority.write(tmp_path / "ca.crt")))
        assert json.loads(await asyncio.to_thread(key_set.read_source, url)) == issuer.jwks()
        with pytest.raises(key_set.KeySetError, match="HTTP 302"):
            await asyncio.to_thread(key_set.read_source, url.replace("/jwks.json", "/moved"))


async def test_callers_do_not_share_what_they_asked(models: FakeModels, callers: Path) -> None:
    """What another caller asked cannot be told from cached tokens, or from an answer out of the verdict cache."""
    prompt = "The same long beginning of a prompt, again and again. " * 8
    for share in (False, True):
        async with running(
            models, callers=callers, share_caches=share, cache_entries=100, policies=callers.parent / "policies.yaml"
        ) as server:

            async def both(name: str, server: Running = server) -> tuple[int, Any]:
                request = GenerateRequest(prompt=prompt, max_tokens=1)
                written = await server.generation.Generate(request, metadata=bearer(KEYS[name]))
                judged = await classify(server, KEYS[name], prompt)
                return written.usage.cached_tokens, judged.decided_by

            first, again, other = await both("chat"), await both("chat"), await both("root")
            assert first[0] == 0 < again[0]
            assert (first[1], again[1]) == (1, 4)
            assert other == (again if share else first)


async def test_the_client_brings_its_key(server: Running) -> None:
    address = server.app.address

    def ask() -> None:
        with GuardClient(address, api_key=KEYS["chat"]) as client:
            assert client.is_serving()
            assert client.classify(UNSAFE_MARK).verdict is Verdict.UNSAFE
            assert client.classify("bread").decided_by is DecidedBy.MODEL
            assert client.stream_classify("Hi.", ["fine ", "day"]).result().verdict is Verdict.SAFE
            assert "".join(delta.text for delta in client.stream_generate("Hi."))
            assert client.list_models()
        with GuardClient(address, api_key=iter([KEYS["news"], KEYS["spare"]]).__next__) as client:
            assert client.list_policies()
            assert client.list_policies()
        with GuardClient(address) as client, pytest.raises(NotPermittedError) as caught:
            client.classify("bread")
        assert (caught.value.code, caught.value.reason) == (grpc.StatusCode.UNAUTHENTICATED, "CREDENTIALS_MISSING")
        with GuardClient(address, api_key=KEYS["spare"]) as client, pytest.raises(ServerBusyError) as busy:
            for _ in range(3):
                client.classify("bread")
        assert busy.value.reason == "QUOTA_EXCEEDED"
        assert busy.value.retry_after_s

    await asyncio.to_thread(ask)
    async with AsyncGuardClient(address, api_key=KEYS["chat"]) as client:
        assert (await client.classify(UNSAFE_MARK)).verdict is Verdict.UNSAFE
        stream = client.stream_classify("Hi.", ["fine ", "day"])
        assert [progress async for progress in stream]


def test_a_key_does_not_leave_the_machine_in_the_clear() -> None:
    for address in ("guard.example:50051", "10.0.0.7:50051", "[2001:db8::1]:50051"):
        with pytest.raises(InvalidInputError, match="without encryption"):
            GuardClient(address, api_key=KEYS["chat"])
        GuardClient(address).close()
