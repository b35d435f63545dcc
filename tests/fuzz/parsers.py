"""The readers of what callers write inside requests (tool calls, schemas, tokens) and of files that operators trust.

Each takes what is right or refuses it with an error of this project, in bounded memory where the file says how much.
"""

from __future__ import annotations

import asyncio
import json
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import gguf
import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from export.checkpoint.files import RandomAccessFile
from export.checkpoint.gguf_file import GgufFile
from export.checkpoint.safetensors import SafetensorsFile
from export.sign import sign_bundle
from guard.bundle.manifest import Manifest
from guard.bundle.signature import SIGNATURE_FILE, signed_files
from guard.generation import JsonFormat, RegexFormat, Tool, ToolChoice, ToolMode
from guard.structured.compiler import FormatCompiler
from guard.tools.schema import ArgumentChecker, check_tools
from guard.tools.stream import ToolReader
from server.auth import keys
from server.auth.file import ALGORITHMS, OidcSettings, load_callers
from server.auth.key_set import KeySet
from server.auth.tokens import TokenVerifier
from server.policies import load_policies
from server.settings_sources import load_settings
from tests.contract.issuer import AUDIENCE, ISSUER, SUBJECT, Issuer
from tests.fuzz.documents import as_json, changed, odd, schema
from tests.fuzz.mutations import mangled, text
from tests.unit.export.checkpoint.gguf_files import GgufContent
from tests.unit.guard.builders import write_bundle

#: What a reader of a damaged checkpoint of less than 1 KiB may hold at once.
_PEAK_BYTES = 1 << 20
_TOOLS = (
    Tool("get_weather", "", {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}),
    Tool("f"),
)
_CALL_PIECES = (
    '{"name": "get_weather", "parameters": {"city": "Rome"}}',
    '{"type": "function", "function": {"name": "f", "arguments": "{}"}}',
    "[get_weather(city='Rome'), f()]",
    "[f(a=[1, {'b': -2.5}], b=None)]",
    *('{"name": "', '"parameters": ', "[f(", "get_weather", "city=", "'Rome'", r"'\u0041\q'", "f'{x}'", "**{}", "a=1"),
    *("{", "}", "[", "]", "(", ")", ";", ",", ", ", '"', "'", "\\", "```", "```json\n", "\n", " ", ": "),
    *("<tool_call>", "</tool_call>", "<|python_tag|>", "true", "None", "1e999", "9" * 5000, "[" * 300, "\ud83d\ude00"),
)
_POLICIES = {
    "default": "strict",
    "callers": {"a": "lax"},
    "policies": {
        "strict": {
            "threshold": 0.5,
            "category_thresholds": {"S1": 0.4},
            "excluded_categories": ["S10"],
            "custom_categories": [{"code": "S2", "name": "Theft", "description": "Taking things."}],
            "action": "block",
            "deny": ["steal the bread", {"phrase": "a phrase", "name": "n"}],
            "allow": ["fine"],
        },
        "lax": {"extends": "strict", "threshold": 0.9, "action": "shadow"},
    },
}
_SETTINGS = {
    "guard": "bundle",
    "address": "127.0.0.1:0",
    "threads": 1,
    "max_queued": 3,
    "drain_delay_s": 1.0,
    "admin": True,
    "model_directory": "models",
}


class Parsers:
    """Readers and good inputs of theirs, those that are files in ``directory``."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._compiler, self._manifest = _compiler(directory / "for-formats")
        private = ec.generate_private_key(ec.SECP256R1())
        pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        (directory / "key.pem").write_bytes(pem)
        signed = write_bundle(directory / "signed", "guard").directory
        self._key = sign_bundle(signed, directory / "key.pem")
        self._signature = (signed / SIGNATURE_FILE).read_bytes()
        self._signed = signed_files(self._signature, self._key)
        self._issuer, self._forger = Issuer(), Issuer()
        self._verifier = self._make_verifier()
        self._runner = asyncio.Runner()
        self._safetensors, self._gguf = _safetensors(), _gguf(directory / "x.gguf")
        self._callers = _callers()
        self.targets: dict[str, Callable[[Random], None]] = {
            "tool calls": self._tool_calls,
            "tool schema": self._tool_schema,
            "output format": self._output_format,
            "token": self._token,
            "policies file": lambda chance: self._yaml(chance, _POLICIES, load_policies),
            "callers file": lambda chance: self._yaml(
                chance, self._callers, lambda path: load_callers(path, ["default", "strict"])
            ),
            "settings file": lambda chance: self._yaml(chance, _SETTINGS, lambda path: load_settings({}, {}, path)),
            "manifest": self._check_manifest,
            "signature": self._check_signature,
            "safetensors": lambda chance: self._checkpoint(chance, self._safetensors, SafetensorsFile),
            "GGUF": lambda chance: self._checkpoint(chance, self._gguf, GgufFile),
        }

    def close(self) -> None:
        """End the event loop that tokens are verified in."""
        self._runner.close()

    def _tool_calls(self, chance: Random) -> None:
        """However an answer is cut into pieces, it has the same calls, or is the same text."""
        answer = "".join(chance.choice(_CALL_PIECES) for _ in range(chance.choice((1, 1, 2, 3, 6, 12))))
        if chance.random() < 0.3:
            answer = mangled(answer.encode("utf-8", "surrogatepass"), chance).decode("utf-8", "replace")
        choice = chance.choice((ToolChoice(), ToolChoice(), ToolChoice(ToolMode.REQUIRED), ToolChoice(name="f")))
        ends = []
        for pieces in ([answer], list(_cut(answer, chance))):
            reader = ToolReader(_TOOLS, choice)
            shown = "".join([reader.feed(piece) for piece in pieces])
            held, calls = reader.finish()
            assert not (calls and shown + held.strip()), "an answer that is text and calls"
            assert calls or shown + held == answer, "a text that is not what the model wrote"
            assert all(call.name in ("f", "get_weather") for call in calls), "a call of no tool"
            for call in calls:
                assert isinstance(json.loads(call.arguments), dict), "arguments that are no object"
            ends.append([(call.name, call.arguments) for call in calls])
        assert ends[0] == ends[1], "calls that depend on how the answer was cut"

    def _tool_schema(self, chance: Random) -> None:
        tool = Tool("f", text(chance)[:100], schema(chance))
        check_tools([tool], ToolChoice())
        checker = ArgumentChecker(tool)
        for _ in range(3):
            checker.accepts({"a": odd(chance), "b": [odd(chance), odd(chance)]})

    def _output_format(self, chance: Random) -> None:
        made = JsonFormat(schema(chance)) if chance.random() < 0.7 else RegexFormat(text(chance))
        constraint = self._compiler.constraint(made)
        for _ in range(20):
            allowed = np.flatnonzero(constraint.allowed())
            assert allowed.size, "nothing may follow"
            token = int(chance.choice(allowed.tolist()))
            constraint.accept(token)
            if token in self._manifest["tokens"]["stop"]:
                break

    def _token(self, chance: Random) -> None:
        """Only the issuer's key opens, and only for the subject that it signed."""
        forged = chance.random() < 0.3
        signer = self._forger if forged else self._issuer
        claims = changed({"aud": AUDIENCE, "iss": ISSUER, "sub": SUBJECT, "exp": 4e9, "x": [1]}, chance)
        if not isinstance(claims, dict):
            claims = {}
        said = {name: value for name, value in claims.items() if name not in ("kid", "key", "algorithm")}
        try:
            token = signer.token(chance.choice(("rsa", "ec")), **said)
        except (TypeError, ValueError, OverflowError):  # the library does not sign everything
            token = text(chance)
        if tampered := chance.random() < 0.5:
            token = mangled(token.encode(), chance).decode("utf-8", "replace")
        subject = self._runner.run(self._verifier.verify(token))
        assert not forged, "a token of another issuer was taken"
        assert not tampered or subject == claims.get("sub", SUBJECT), "a subject that nobody signed"

    def _yaml(self, chance: Random, document: Any, read: Callable[[Path], Any]) -> None:
        path = self._directory / "file.yaml"
        path.write_bytes(as_json(document, chance))
        read(path)

    def _check_manifest(self, chance: Random) -> None:
        read = Manifest.from_json(as_json(self._manifest, chance))
        assert Manifest.from_json(read.to_json()) == read, "a manifest that changes when it is written"

    def _check_signature(self, chance: Random) -> None:
        data = as_json(json.loads(self._signature), chance)
        assert signed_files(data, self._key) == self._signed, "a statement that nobody signed"

    def _checkpoint(self, chance: Random, data: bytes, kind: Callable[[RandomAccessFile], Any]) -> None:
        if chance.random() < 0.4:
            at = chance.randrange(len(data))
            number = chance.choice((0, 1, 1 << 16, 1 << 31, (1 << 32) - 1, 1 << 40, 1 << 63, (1 << 64) - 1))
            data = data[:at] + number.to_bytes(8, "little") + data[at + 8 :]
        else:
            data = mangled(data, chance)
        path = self._directory / "damaged"
        path.write_bytes(data)
        tracemalloc.start()
        try:
            file = kind(RandomAccessFile(path))
            for name in file.names():
                file.read(name)
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert peak < _PEAK_BYTES, f"{peak} bytes for a file of {len(data)}"

    def _make_verifier(self) -> TokenVerifier:
        settings = OidcSettings(ISSUER, AUDIENCE, "unused", ("RS256", "ES256"))
        assert set(settings.algorithms) < ALGORITHMS
        published = json.dumps(self._issuer.jwks()).encode()
        return TokenVerifier(settings, KeySet("unused", settings.algorithms, fetch=lambda _: published))


def _cut(answer: str, chance: Random) -> list[str]:
    cuts = sorted(chance.randrange(len(answer) + 1) for _ in range(chance.choice((1, 3, 30))))
    return [answer[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(answer)], strict=True)]


def _compiler(directory: Path) -> tuple[FormatCompiler, Any]:
    bundle = write_bundle(directory, "instruct")
    compiler = FormatCompiler(bundle.tokenizer_path, bundle.manifest.shape.vocab_size, bundle.manifest.tokens.stop)
    return compiler, json.loads(bundle.manifest.to_json())


def _callers() -> Any:
    quota = {"requests_per_minute": 60, "bytes_per_minute": 1e6, "concurrent": 4}
    caller = {"keys": [keys.key_hash(keys.new_key())], "certificates": ["uri:spiffe://x"], "subjects": ["s"]}
    oidc = {"issuer": ISSUER, "audience": AUDIENCE, "jwks": "https://issuer.test/keys", "algorithms": ["RS256"]}
    more = {"policy": "strict", "admin": True, "services": ["moderation"], "quota": quota}
    return {"callers": {"a": caller | more, "b": {}}, "oidc": oidc | {"claim": "sub", "leeway_s": 30, "refresh_s": 300}}


def _safetensors() -> bytes:
    entries = {
        "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
        "b": {"dtype": "BF16", "shape": [2, 2], "data_offsets": [8, 16]},
    }
    header = json.dumps({"__metadata__": {"format": "pt"}} | entries).encode()
    return struct.pack("<Q", len(header)) + header + bytes(16)


def _gguf(path: Path) -> bytes:
    kinds = gguf.GGMLQuantizationType
    tensors = {"a": (np.ones((2, 3), np.float32), kinds.F32), "b": (np.ones((2, 32), np.float32), kinds.Q8_0)}
    metadata = {"a.text": "x", "a.texts": ["x", "yz"], "a.numbers": [1, 2], "general.alignment": 32}
    return GgufContent(metadata, tensors).write(path).read_bytes()
