"""llguidance's errors in words that hold nothing of the caller's."""

from __future__ import annotations

#: What to say for what llguidance says. Its own words may quote the caller's, which errors must not.
_REASONS = {
    "unclosed group": "unclosed group",
    "unopened group": "unopened group",
    "unclosed character class": "unclosed character class",
    "look-around": "look-ahead, look-behind and word borders are not supported",
    "lookarounds": "look-ahead, look-behind and word borders are not supported",
    "backreferences": "back references are not supported",
    "repetition": "wrong use of a repetition",
    "unrecognized escape": "unknown escape sequence",
    "incomplete escape": "unknown escape sequence",
    "Unicode property not found": "unknown Unicode property",
    "invalid character class range": "wrong range of characters",
    "regex parse error": "not a regular expression in Rust's syntax",
    "invalid regex": "not a regular expression in Rust's syntax",
    "Unsatisfiable schema": "no value satisfies it",
    "NoExtension": "no text satisfies it",
    "oneOf": "oneOf with branches that may overlap is not supported; anyOf is",
    "Invalid type": "a type that JSON does not have",
    "Unknown format": "a format that is not supported",
    "not present in a registry": "a $ref that is not to a part of this schema",
    "does not exist": "a $ref to a part that does not exist",
    "circular references": "a $ref to itself with other keywords beside it is not supported",
    "recursion limit": "nested too deeply",
    "Expected": "a keyword's value has the wrong type",
    "must be": "a keyword's value has the wrong type",
    "not JSON": "not JSON",
    "too": "too complex",
    "fuel": "too complex",
    "max is": "too complex",
    "limit": "too complex",
    "Unable to determine": "too complex",
    "can't determine": "too complex",
}
#: Keywords that llguidance knows it cannot enforce; others than these are a caller's own words.
_UNENFORCED = (
    "not",
    "if",
    "then",
    "else",
    "contains",
    "minContains",
    "maxContains",
    "uniqueItems",
    "propertyNames",
    "dependentRequired",
    "dependentSchemas",
    "dependencies",
    "unevaluatedItems",
    "unevaluatedProperties",
    "$dynamicRef",
    "$recursiveRef",
    "contentEncoding",
    "contentMediaType",
    "contentSchema",
)


def reason(message: str) -> str:
    """llguidance's error in words that hold nothing of the caller's."""
    head, found, keywords = message.partition("Unimplemented keys: ")
    if found and not head:
        names = [name for name in _UNENFORCED if f'"{name}"' in keywords]
        return f"{', '.join(names) or 'a keyword that is used'}: not supported"
    return next((told for said, told in _REASONS.items() if said in message), "cannot be enforced")
