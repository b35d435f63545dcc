"""JSON values at random, and changes to one that is right."""

from __future__ import annotations

import copy
import json
from random import Random
from typing import Any

from tests.fuzz.mutations import mangled, text

_NESTED: Any = "x"
for _ in range(60):
    _NESTED = [_NESTED]
_ODD: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    2.5,
    1e308,
    10**20,
    10**400,
    float("nan"),
    float("inf"),
    "",
    [],
    {},
    _NESTED,
)
_NAMES = ("..", "/etc/passwd", "a/b", "a\0b", "2024-99-99", "&a", "*a", "~", "S1", "S0", "x" * 70, "default")
#: Of JSON Schema, a few of them wrong.
_KEYWORDS: dict[str, tuple[Any, ...]] = {
    "type": ("object", "string", "integer", "number", "array", "boolean", "null", "strnig", ["string", "null"]),
    "enum": (["a", "b"], [1, None], [], ["a", "a"], "a"),
    "const": ("a", 1, None, {"a": [1]}),
    "pattern": ("^a+$", "(a+)+$", "[", r"\d{3}", r"(?=a)b", "a{1,99999}", "\\"),
    "minLength": (0, 3, -1, 10**9),
    "maxLength": (0, 3, "3"),
    "minimum": (0, -1.5, float("nan"), 10**400),
    "exclusiveMaximum": (0, 1e308),
    "multipleOf": (0, 1, 0.1, 1e-300, 10**400),
    "minItems": (0, 2, 10**9),
    "uniqueItems": (True, False, 1),
    "format": ("date", "uuid", "no such"),
    "required": (["a"], ["a", "a"], ["missing"], "a"),
    "additionalProperties": (True, False),
    "$ref": ("#", "#/properties/a", "#/nowhere", "https://example.org/schema", "file:///etc/passwd"),
}
_HOLDERS = {"items": "one", "not": "one", "additionalProperties": "one", "properties": "map", "$defs": "map"} | {
    "anyOf": "list",
    "allOf": "list",
    "oneOf": "list",
    "prefixItems": "list",
    "patternProperties": "map",
}


def odd(chance: Random) -> Any:
    """A value where another was expected."""
    if chance.random() < 0.33:
        return text(chance)
    return copy.deepcopy(chance.choice(chance.choice((_ODD, _NAMES))))


def changed(document: Any, chance: Random) -> Any:
    """A copy of ``document`` with up to three of its values changed, taken away, added or given another name."""
    made = copy.deepcopy(document)
    for _ in range(chance.choice((0, 1, 1, 2, 3))):
        places = list(_containers(made))
        if not places:
            return odd(chance)
        place = chance.choice(places)
        key: Any = chance.choice(list(place) if isinstance(place, dict) else range(len(place)))
        match chance.randrange(5):
            case 0 | 1:
                place[key] = odd(chance)
            case 2:
                del place[key]
            case 3 if isinstance(place, dict):
                place[str(odd(chance))[:80]] = place.pop(key)
            case _ if isinstance(place, dict):
                place[str(odd(chance))[:80]] = odd(chance)
            case _:
                place.append(odd(chance))
    return made


def as_json(document: Any, chance: Random) -> bytes:
    """``document`` changed, as JSON (which YAML reads too); one time in three its bytes are changed besides."""
    data = json.dumps(changed(document, chance), ensure_ascii=chance.random() < 0.5).encode("utf-8", "surrogatepass")
    return mangled(data, chance) if chance.random() < 0.33 else data


def schema(chance: Random, depth: int = 0) -> dict[str, Any]:
    """A JSON Schema, often of an object and often right."""
    made: dict[str, Any] = {"type": "object"} if depth == 0 and chance.random() < 0.9 else {}
    for word in chance.sample(list(_KEYWORDS), chance.choice((0, 1, 1, 2, 3))):
        made[word] = chance.choice(_KEYWORDS[word])
    if depth < 3:
        for word in chance.sample(list(_HOLDERS), chance.choice((0, 1, 1, 2))):
            inner = [schema(chance, depth + 1) for _ in range(chance.choice((1, 2)))]
            names = ("a", chance.choice(_NAMES))
            shapes = {"one": inner[0], "list": inner, "map": dict(zip(names, inner, strict=False))}
            made[word] = shapes[_HOLDERS[word]]
    return made


def _containers(value: Any) -> Any:
    """All lists and mappings in ``value`` that have something in them."""
    if isinstance(value, dict | list) and value:
        yield value
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _containers(inner)
