"""The form that a model's text must have when it has to call a tool."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from guard.generation import JsonFormat, Tool, ToolChoice
from guard.tools.keywords import map_subschemas

#: Beside these, properties that the schema does not name may be needed, or are spoken of already.
_SPEAKS_OF_OTHERS: Final = frozenset(
    [
        *("$ref", "anyOf", "oneOf", "allOf", "not", "if"),
        *("additionalProperties", "minProperties", "dependentRequired", "dependentSchemas", "propertyNames"),
    ]
)


def forced_format(tools: Sequence[Tool], choice: ToolChoice) -> JsonFormat:
    """One call of the chosen tool, or of any when the choice names none: ``{"name": ..., "parameters": {...}}``.

    Expects what ``check_tools`` accepted. Properties that a schema does not mention are left out at its top level, so
    that a small model does not go on inventing them; whatever the grammar allows, the schema accepts.
    """
    offered = [tool for tool in tools if choice.name in ("", tool.name)]
    definitions = {f"arguments{index}": _moved(tool.parameters, index) for index, tool in enumerate(offered)}
    calls = [
        {
            "type": "object",
            "properties": {"name": {"const": tool.name}, "parameters": {"$ref": f"#/$defs/arguments{index}"}},
            "required": ["name", "parameters"],
            "additionalProperties": False,
        }
        for index, tool in enumerate(offered)
    ]
    return JsonFormat({"$defs": definitions, "anyOf": calls})


def _moved(schema: Mapping[str, Any], index: int) -> dict[str, Any]:
    def relocated(inner: Mapping[str, Any]) -> dict[str, Any]:
        copy = map_subschemas(inner, relocated)
        if "$ref" in copy:
            copy["$ref"] = f"#/$defs/arguments{index}{copy['$ref'][1:]}"
        return copy

    moved = relocated(schema)
    moved.pop("$schema", None)
    names = moved.get("properties", {}).keys()
    if not _SPEAKS_OF_OTHERS & moved.keys() and names >= set(moved.get("required", ())):
        moved["additionalProperties"] = False
    return moved
