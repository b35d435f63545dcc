"""An OpenID Connect issuer: signs tokens, and serves its keys over http on this machine."""

from __future__ import annotations

import json
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

ISSUER, AUDIENCE, SUBJECT = "https://issuer.test", "guardlet", "service-7"


class Issuer:
    """``keys``: id to private key. ``published``: the ids that the JWKS has. ``down``: it answers 503."""

    def __init__(self) -> None:
        self.keys: dict[str, Any] = {
            "rsa": rsa.generate_private_key(65537, 2048),
            "ec": ec.generate_private_key(ec.SECP256R1()),
        }
        self.published = {"rsa", "ec"}
        self.down = False
        self.asked = 0

    def add(self, kid: str) -> None:
        """A further key, which is published."""
        self.keys[kid] = rsa.generate_private_key(65537, 2048)
        self.published.add(kid)

    def token(self, kid: str | None = "rsa", *, key: Any = None, algorithm: str | None = None, **claims: Any) -> str:
        """A good token, but for what is given; a claim of None is left out, and so is a ``kid`` of None."""
        now = int(time.time())
        good = {"iss": ISSUER, "aud": AUDIENCE, "sub": SUBJECT, "iat": now, "nbf": now, "exp": now + 60}
        said = {name: value for name, value in (good | claims).items() if value is not None}
        own = self.keys.get(kid or "rsa")
        algorithm = algorithm or ("ES256" if isinstance(own, ec.EllipticCurvePrivateKey) else "RS256")
        headers = {} if kid is None else {"kid": kid}
        signing: Any = own if key is None else key
        return jwt.encode(said, "" if algorithm == "none" else signing, algorithm=algorithm, headers=headers)

    def jwks(self) -> dict[str, Any]:
        """The public keys."""
        return {"keys": [_public(kid, key) for kid, key in self.keys.items() if kid in self.published]}


@contextmanager
def serving(issuer: Issuer, tls: ssl.SSLContext | None = None) -> Iterator[str]:
    """The URL of the keys; over https with ``tls``. /moved redirects to it."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            issuer.asked += 1
            if self.path == "/moved":
                self.send_response(302)
                self.send_header("Location", "/jwks.json")
                self.end_headers()
                return
            self.send_response(503 if issuer.down else 200)
            self.end_headers()
            if not issuer.down:
                self.wfile.write(json.dumps(issuer.jwks()).encode())

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"{'https' if tls else 'http'}://127.0.0.1:{server.server_port}/jwks.json"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _public(kid: str, key: Any) -> dict[str, Any]:
    algorithm: Any = ECAlgorithm if isinstance(key, ec.EllipticCurvePrivateKey) else RSAAlgorithm
    public: dict[str, Any] = json.loads(algorithm.to_jwk(key.public_key()))
    return public | {"kid": kid, "use": "sig"}
