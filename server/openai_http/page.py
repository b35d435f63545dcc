"""The page, and the header that keeps it from loading or sending anything elsewhere."""

from __future__ import annotations

import base64
import hashlib
import re
from importlib.resources import files

_INLINE = re.compile(r"<(style|script)>(.*?)</\1>", re.DOTALL)


def load() -> tuple[bytes, dict[str, str]]:
    """The page's bytes and headers. Its one style and one script are allowed by their hashes (CSP level 2)."""
    text = files("server.openai_http").joinpath("page.html").read_text(encoding="utf-8")
    hashes = {
        kind: base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        for kind, content in _INLINE.findall(text)
    }
    policy = (
        "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; connect-src 'self'; "
        "img-src data:; "
        f"style-src 'sha256-{hashes['style']}'; script-src 'sha256-{hashes['script']}'"
    )
    return text.encode(), {"content-security-policy": policy, "referrer-policy": "no-referrer"}
