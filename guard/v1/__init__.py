"""Stubs of package ``guard.v1``, generated from ``proto/`` by ``tools/stubs.py``: only the client and the server import them."""
