"""What is fuzzed: bytes through the server's own decoding, prompts and answers, without a network in between; and the
readers of ``tests.fuzz.parsers``.

Whatever comes in, an answer or an error with a name goes out, within seconds; never INTERNAL. And texts have no
say in what a prompt is made of: the control tokens of a prompt, and its delimiters, are those of the same conversation
with other texts.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from random import Random
from typing import Any

import grpc
from google.protobuf.message import DecodeError, Message

from guard.chat_template import ChatTemplate
from guard.classifier import Classifier
from guard.conversation import (
    Conversation,
    Role,
    Target,
    ToolCall,
    check_generation_turns,
    check_moderation_turns,
)
from guard.conversation import Message as Turn
from guard.engine.sampler import SamplingParams
from guard.engine.settings import EngineSettings
from guard.errors import CheckpointError, GuardError, ModelOutputError
from guard.generator import Generator
from guard.pipeline import GuardedGenerator
from guard.policies import PolicyBook
from guard.policy import CustomCategory, Policy
from guard.prompt import GuardPromptBuilder
from guard.tagger import Tagger
from guard.tokenizer import Tokenizer
from guard.v1.generation_pb2 import GenerateRequest, TagRequest
from guard.v1.moderation_pb2 import TARGET_RESPONSE, ClassifyRequest, StreamClassifyStart
from server import convert, convert_generation, convert_guarded, convert_policy, convert_tag, status
from tests.contract.fakes import FakeModels
from tests.fuzz.mutations import disturb, fill, mangled, text
from tests.fuzz.parsers import Parsers
from tests.unit.guard.builders import FORMAT

#: Of CPU time: far more than the scripted models take for the longest of the texts.
SLOW_S = 15.0
_WAIT_S = 30.0
_BOOK = PolicyBook()
_INTERNAL = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN)
_DELIMITERS = ("<TALK>", "</TALK>")


@dataclass
class Findings:
    """How inputs ended, and those that ended as none may: the target, the seed and why."""

    #: By target, and by how they ended.
    ends: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    findings: list[str] = field(default_factory=list)

    @property
    def inputs(self) -> int:
        """How many were tried."""
        return sum(ends.total() for ends in self.ends.values())


class Fuzzer:
    """Scripted models in ``directory`` and the targets around them."""

    def __init__(self, directory: Path) -> None:
        models, settings = FakeModels(directory), EngineSettings(max_queued=64)
        guard, instruct = models(Path("guard"), "guard", settings), models(Path("instruct"), "instruct", settings)
        assert isinstance(guard, Classifier) and isinstance(instruct, Generator)
        self._guard, self._instruct, self._tagger = guard, instruct, Tagger(instruct)
        self._guarded = GuardedGenerator(instruct, guard)
        self._tokenizer = Tokenizer(guard.bundle.tokenizer_path, guard.bundle.manifest.tokens.control)
        self._control = frozenset(guard.bundle.manifest.tokens.control.values())
        self._builder = GuardPromptBuilder(FORMAT, self._tokenizer)
        self.targets: dict[str, Callable[[Random], None]] = {
            "classify": lambda chance: self._decoded(chance, ClassifyRequest, self._classify),
            "stream": lambda chance: self._decoded(chance, StreamClassifyStart, self._stream),
            "generate": lambda chance: self._decoded(chance, GenerateRequest, self._generate),
            "tag": lambda chance: self._decoded(chance, TagRequest, self._tag),
            "guard prompt": self._guard_prompt,
            "chat prompt": self._chat_prompt,
            "conversation": self._conversation,
            "custom categories": self._custom_categories,
        }
        self._parsers = Parsers(directory)
        self.targets |= self._parsers.targets

    def close(self) -> None:
        """Stop the models."""
        self._parsers.close()
        self._guard.close()
        self._instruct.close()

    def one(self, name: str, seed: int, found: Findings) -> None:
        """Try one input of one target."""
        began, ends = time.process_time(), found.ends[name]
        try:
            self.targets[name](Random(f"{name} {seed}"))
        except DecodeError:
            ends["not a message"] += 1
        except ModelOutputError:
            ends["unreadable"] += 1  # what a scripted model writes when it is asked for a whole list
        except CheckpointError:
            ends["refused"] += 1  # met in an export, never in a call
        except GuardError as error:
            code = status.failure(error, "fuzz").code
            ends[code.name] += 1
            if code in _INTERNAL:
                found.findings.append(f"{name}, seed {seed}: {type(error).__name__}")
        except Exception as error:  # noqa: BLE001 - that is what is looked for
            ends["CRASH"] += 1
            found.findings.append(f"{name}, seed {seed}: {type(error).__name__}: {error}")
        else:
            ends["answered"] += 1
        if time.process_time() - began > SLOW_S:
            found.findings.append(f"{name}, seed {seed}: took {time.process_time() - began:.1f} s")

    def _decoded(self, chance: Random, kind: type[Message], handle: Callable[[Any], Message]) -> None:
        request = kind()
        if chance.random() < 0.2:
            fill(request, chance)
        else:
            _make_valid(request, chance)
            disturb(request, chance)
        data = request.SerializeToString()
        if chance.random() < 0.3:
            data = mangled(data, chance)
        handle(kind.FromString(data)).SerializeToString()

    def _classify(self, request: ClassifyRequest) -> Message:
        convert.check_request_id(request.request_id)
        applied = convert_policy.applied_policy(request, _BOOK, None)
        task = convert.classify_task(request, applied.policy)
        judgement = self._guard.submit(task).future.result(_WAIT_S)
        return convert.classify_response(judgement, task.target, applied, "m", "r", 0.0)

    def _stream(self, start: StreamClassifyStart) -> Message:
        applied = convert_policy.applied_policy(start, _BOOK, None)
        task = convert.stream_task(start, applied.policy)
        convert.longest_wait_s(start)
        session = self._guard.stream(task)
        try:
            session.add(" ".join(message.content for message in start.messages) or "x")
            while (ticket := session.next_check() or session.check_rest()) is not None:
                ticket.future.result(_WAIT_S)
            return convert.classify_response(session.result(), task.target, applied, "m", "r", 0.0)
        finally:
            session.close()

    def _generate(self, request: GenerateRequest) -> Message:
        request.max_tokens = min(request.max_tokens, 8)
        task = convert_generation.generate_task(
            request, SamplingParams(), default_max_tokens=4, max_tokens=8, cache_salt=""
        )
        if not request.HasField("moderation"):
            ticket: Any = self._instruct.submit(task, lambda delta: None)
        else:
            applied = convert_policy.applied_policy(request.moderation, _BOOK, None)
            moderation = convert_guarded.moderation(request.moderation, applied.policy)
            ticket = self._guarded.submit(task, moderation, lambda delta: None)
        return convert_generation.generate_response(ticket.future.result(_WAIT_S), "m", "r", 0.0, 0.0)

    def _tag(self, request: TagRequest) -> Message:
        ticket = self._tagger.submit(convert_tag.tag_task(request))
        return convert_tag.tag_response(ticket.future.result(_WAIT_S), "m", "r", 0.0)

    def _guard_prompt(self, chance: Random) -> None:
        turns = chance.randint(1, 4)
        target = Target.RESPONSE if turns % 2 == 0 else Target.PROMPT
        contents = [text(chance) for _ in range(turns)]
        plain = [f"x{index}" for index in range(turns)]
        made = [
            self._builder.build(Conversation(_turns(each)), target, Policy()).token_ids for each in (contents, plain)
        ]
        self._check_same(*made)
        written = [self._builder.render(Conversation(_turns(each)), target, Policy()) for each in (contents, plain)]
        for delimiter in _DELIMITERS:
            assert [prompt.count(delimiter) for prompt in written] == [1, 1], delimiter

    def _chat_prompt(self, chance: Random) -> None:
        turns = chance.choice((1, 3, 5))
        template: ChatTemplate = self._instruct.template
        made = []
        for contents in ([text(chance) for _ in range(turns)], [f"x{index}" for index in range(turns)]):
            segments = template.segments(Conversation(_turns(contents)), date(2026, 11, 22))
            made.append(self._tokenizer.encode(segments))
        self._check_same(*made)

    def _conversation(self, chance: Random) -> None:
        """Any roles in any order, calls and results among them, lone surrogates: refused by name, or both prompts."""
        calls = [ToolCall(*(_any_text(chance) for _ in range(3))) for _ in range(2)] + [ToolCall("1", "f", "{}")]
        turns = tuple(
            Turn(
                chance.choice((Role.USER, Role.ASSISTANT, Role.USER, Role.ASSISTANT, Role.SYSTEM, Role.TOOL)),
                _any_text(chance),
                tuple(chance.sample(calls, chance.choice((0, 0, 0, 1, 2)))),
                chance.choice(("", "", "", "1", _any_text(chance))),
            )
            for _ in range(chance.choice((0, 1, 1, 2, 3, 5)))
        )
        conversation, target = Conversation(turns), chance.choice(list(Target))
        if chance.random() < 0.5:
            check_moderation_turns(conversation, target)
            self._builder.build(conversation, target, Policy())
        else:
            check_generation_turns(conversation)
            self._tokenizer.encode(self._instruct.template.segments(conversation, date(2026, 11, 22)))

    def _custom_categories(self, chance: Random) -> None:
        """A caller's categories are text of the prompt, never its delimiters or control tokens."""
        made, written = [], []
        for name, description in ((text(chance)[:64], text(chance)[:512]), ("x", "y")):
            policy = Policy(custom_categories=(CustomCategory("S2", name, description),))
            conversation = Conversation((Turn(Role.USER, "bread"),))
            made.append(self._builder.build(conversation, Target.PROMPT, policy).token_ids)
            written.append(self._builder.render(conversation, Target.PROMPT, policy))
        self._check_same(*made)
        for delimiter in _DELIMITERS:
            assert [prompt.count(delimiter) for prompt in written] == [1, 1], delimiter

    def _check_same(self, first: Any, second: Any) -> None:
        """That both prompts have the same control tokens in the same order."""
        controls = [[token for token in ids if token in self._control] for ids in (first, second)]
        assert controls[0] == controls[1], "a text changed the control tokens"


def _make_valid(request: Any, chance: Random) -> None:
    """Texts at random in a request that is right otherwise."""
    if isinstance(request, TagRequest):
        request.text = text(chance)
        for name in ("spam", "news", "a label of several words"):
            request.labels.add(name=name)
        return
    turns = chance.choice((1, 1, 3))
    for index in range(turns):
        request.messages.add(role=1 + index % 2, content=text(chance))
    if isinstance(request, StreamClassifyStart):
        request.target, request.check_every_tokens = TARGET_RESPONSE, 16
    if isinstance(request, GenerateRequest):
        request.max_tokens, request.moderation.check_input = 4, True
        request.moderation.check_output = chance.random() < 0.5


def _turns(contents: list[str]) -> tuple[Turn, ...]:
    return tuple(Turn((Role.USER, Role.ASSISTANT)[index % 2], content) for index, content in enumerate(contents))


def _any_text(chance: Random) -> str:
    """Now and then one that is not Unicode."""
    return text(chance) + chance.choice(("", "", "", "", "", "", "", "\ud800", "\udfff x"))
