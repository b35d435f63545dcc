"""A YAML file, read strictly: what is not understood is refused by its path in the file, and its line."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import yaml

from guard.errors import InvalidInputError

STRING, _BOOLEAN = "tag:yaml.org,2002:str", "tag:yaml.org,2002:bool"
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


def parse(text: str) -> Entry:
    """The whole file as an entry. Raises InvalidInputError with the line of what is no YAML."""
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = "" if mark is None else f" (line {mark.line + 1})"
        raise InvalidInputError("the file", f"not YAML{place}") from None
    except (yaml.YAMLError, RecursionError):  # a character that YAML does not allow; a thousand brackets
        raise InvalidInputError("the file", "not YAML") from None
    if node is None:
        raise InvalidInputError("the file", "is empty")
    return Entry("", node)


@dataclass(frozen=True)
class Entry:
    """A value of the file; ``where`` is its path, such as ``exports[1].task``. All readings raise InvalidInputError."""

    where: str
    node: yaml.Node

    @property
    def line(self) -> int:
        """Counted from 1."""
        return int(self.node.start_mark.line) + 1

    @property
    def tag(self) -> str:
        """What kind of scalar it is, as YAML names them; empty for lists and mappings, whatever they claim."""
        return str(self.node.tag) if isinstance(self.node, yaml.ScalarNode) else ""

    def refusal(self, problem: str) -> InvalidInputError:
        """The error that says ``problem`` of this entry."""
        return InvalidInputError(self.where or "the file", f"{problem} (line {self.line})")

    def mapping(self, known: Collection[str], required: Collection[str] = ()) -> dict[str, Entry]:
        """The entries by key: no others than ``known``, and all that are ``required``."""
        if not isinstance(self.node, yaml.MappingNode):
            raise self.refusal("expected a mapping")
        found: dict[str, Entry] = {}
        for key, value in self.node.value:
            name = str(key.value) if isinstance(key, yaml.ScalarNode) else "?"
            entry = Entry(f"{self.where}.{name}".lstrip(".")[:200], key)
            if name not in known:
                raise entry.refusal(f"is unknown; there are: {', '.join(sorted(known))}")
            if name in found:
                raise entry.refusal("is given twice")
            found[name] = Entry(entry.where, value)
        for name in required:
            if name not in found:
                raise Entry(f"{self.where}.{name}".lstrip("."), self.node).refusal("is required")
        return found

    def items(self) -> list[Entry]:
        """The entries of a list that is not empty."""
        if not isinstance(self.node, yaml.SequenceNode):
            raise self.refusal("expected a list")
        if not self.node.value:
            raise self.refusal("expected at least one")
        return [Entry(f"{self.where}[{index}]", node) for index, node in enumerate(self.node.value)]

    def one_or_more(self) -> list[Entry]:
        """The entries of a list, or this one alone."""
        return self.items() if isinstance(self.node, yaml.SequenceNode) else [self]

    def text(self) -> str:
        """A text that is not empty."""
        if self.tag != STRING:
            raise self.refusal("expected text; quote it")
        if not self.node.value:
            raise self.refusal("is empty")
        return str(self.node.value)

    def choice(self, names: Collection[str]) -> str:
        """One of ``names``."""
        if self.tag != STRING or self.node.value not in names:
            raise self.refusal(f"expected {' or '.join(names)}")
        return str(self.node.value)

    def flag(self) -> bool:
        """true or false."""
        if self.tag != _BOOLEAN:
            raise self.refusal("expected true or false")
        return bool(self._scalar())

    def number(self, low: float) -> float:
        """A number of at least ``low``."""
        value = self._scalar() if self.tag in _NUMBERS else None
        if value is None or not low <= value < float("inf"):
            raise self.refusal(f"expected a number of at least {low:g}")
        return float(value)

    def count(self) -> int:
        """A whole number from 1 on."""
        value = self._scalar() if self.tag == _NUMBERS[0] else 0
        if not 1 <= value <= 1 << 62:
            raise self.refusal("expected a whole number of at least 1")
        return int(value)

    def _scalar(self) -> Any:
        try:
            return yaml.constructor.SafeConstructor().construct_object(self.node)
        except (ValueError, LookupError):  # an explicit tag over something else: !!int word, !!bool word
            raise self.refusal("cannot be read") from None


class _Loader(yaml.SafeLoader):
    """Refuses aliases, which may explode."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            line = self.peek_event().start_mark.line + 1  # type: ignore[no-untyped-call]
            raise InvalidInputError("the file", f"YAML aliases are not read; use defaults (line {line})")
        return super().compose_node(parent, index)
