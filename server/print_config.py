"""``guard serve --print-config``: the settings as they would be used, and where each came from."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

#: Settings name files that hold secrets and hold none themselves. A text setting that is called one is not shown.
_SECRET = re.compile(r"secret|password|token|credential|(^|_)key$")
HIDDEN = "(set, not shown)"


def described(settings: object, sources: Mapping[str, str]) -> str:
    """``settings`` as YAML for --config, one line each, the source as a comment."""
    lines = [f"{name}: {_shown(name, value)}" for name, value in vars(settings).items()]
    width = max(map(len, lines))
    return "\n".join(f"{line:{width}}  # {sources[line.partition(':')[0]]}" for line in lines)


def _shown(name: str, value: Any) -> str:
    """JSON, which is YAML."""
    if isinstance(value, str) and value and _SECRET.search(name):
        return json.dumps(HIDDEN)
    return json.dumps(str(value) if isinstance(value, Path) else value, ensure_ascii=False)
