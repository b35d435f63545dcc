"""Right requests of every method, whose answers are known beforehand."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from guard.v1 import generation_pb2, generation_pb2_grpc, model_pb2, model_pb2_grpc, moderation_pb2, moderation_pb2_grpc

TIMEOUT_S = 120.0
#: Scores alone, in a crowd and after a reload agree within this (failure test 22).
SCORE_TOLERANCE = 1e-3
_LABELS = ("sport", "weather", "cooking")
_NEW_TOKENS = 12
_WORDS = "The council met again on Tuesday to talk about the bridge, the school roof and the price of water. "


class Stubs:
    """Of one server, on a channel of their own."""

    def __init__(self, address: str) -> None:
        # Without a subchannel pool of its own a channel shares its connection with the others of this process.
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1)]
        self.channel = grpc.aio.insecure_channel(address, options=options)
        self.moderation = moderation_pb2_grpc.ModerationServiceStub(self.channel)
        self.generation = generation_pb2_grpc.GenerationServiceStub(self.channel)
        self.models = model_pb2_grpc.ModelServiceStub(self.channel)
        self.health: Any = health_pb2_grpc.HealthStub(self.channel)


@dataclass(frozen=True)
class Item:
    """A text and whether it is unsafe."""

    text: str
    unsafe: bool


def read_items(path: Path) -> list[Item]:
    """Single messages of a file of labelled rows, each also as the end of a text of several windows."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    single = [row for row in rows if len(row["messages"]) == 1]
    items = [Item(row["messages"][0]["content"], row["label"] == "unsafe") for row in single]
    return items + [Item(_WORDS * 60 + item.text, item.unsafe) for item in items[::8]]


def user(text: str) -> moderation_pb2.Message:
    """What a user says."""
    return moderation_pb2.Message(role=moderation_pb2.ROLE_USER, content=text)


def question(item: Item) -> moderation_pb2.ClassifyRequest:
    """Is it unsafe?"""
    return moderation_pb2.ClassifyRequest(messages=[user(item.text)])


def prompt(item: Item, tokens: int = _NEW_TOKENS, guarded: bool = False) -> generation_pb2.GenerateRequest:
    """An answer to it, always the same."""
    request = generation_pb2.GenerateRequest(messages=[user(item.text)], max_tokens=tokens, temperature=0.0)
    if guarded:
        request.moderation.check_input = request.moderation.check_output = True
    return request


def streamed(request: generation_pb2.GenerateRequest) -> generation_pb2.StreamGenerateRequest:
    """The same, piece by piece."""
    return generation_pb2.StreamGenerateRequest.FromString(request.SerializeToString())


Answer = tuple[str, float]
Ask = Callable[[Stubs, Item], Awaitable[Answer]]


async def classify(stubs: Stubs, item: Item) -> Answer:
    """Classify."""
    answer = await stubs.moderation.Classify(question(item), timeout=TIMEOUT_S)
    return _verdict(answer)


async def batch(stubs: Stubs, item: Item) -> Answer:
    """BatchClassify of three; all must agree."""
    request = moderation_pb2.BatchClassifyRequest(requests=[question(item)] * 3)
    answer = await stubs.moderation.BatchClassify(request, timeout=TIMEOUT_S)
    found = {_verdict(result.response) for result in answer.results}
    return found.pop() if len(found) == 1 else ("mixed", 0.0)


async def stream_classify(stubs: Stubs, item: Item) -> Answer:
    """StreamClassify, in pieces of 7 characters."""

    async def steps() -> AsyncIterator[moderation_pb2.StreamClassifyRequest]:
        start = moderation_pb2.StreamClassifyStart(target=moderation_pb2.TARGET_PROMPT, check_every_tokens=16)
        yield moderation_pb2.StreamClassifyRequest(start=start)
        for at in range(0, len(item.text), 7):
            yield moderation_pb2.StreamClassifyRequest(text=item.text[at : at + 7])
        yield moderation_pb2.StreamClassifyRequest(finish=moderation_pb2.StreamClassifyFinish())

    answers = [answer async for answer in stubs.moderation.StreamClassify(steps(), timeout=TIMEOUT_S)]
    return _verdict(answers[-1].result)


async def generate(stubs: Stubs, item: Item) -> Answer:
    """Generate."""
    answer = await stubs.generation.Generate(prompt(item), timeout=TIMEOUT_S)
    return answer.text, 0.0


async def stream_generate(stubs: Stubs, item: Item) -> Answer:
    """StreamGenerate."""
    text = ""
    async for piece in stubs.generation.StreamGenerate(streamed(prompt(item)), timeout=TIMEOUT_S):
        text += piece.text
    return text, 0.0


async def guarded(stubs: Stubs, item: Item) -> Answer:
    """Generate with the guard around it: whether the prompt was blocked, and the text."""
    answer = await stubs.generation.Generate(prompt(item, guarded=True), timeout=TIMEOUT_S)
    blocked = answer.finish_reason == generation_pb2.FINISH_REASON_CONTENT_FILTER
    return f"{'unsafe' if blocked else 'safe'} {answer.text}", 0.0


async def tag(stubs: Stubs, item: Item) -> Answer:
    """Tag."""
    labels = [generation_pb2.Label(name=name) for name in _LABELS]
    answer = await stubs.generation.Tag(generation_pb2.TagRequest(text=item.text, labels=labels), timeout=TIMEOUT_S)
    return answer.label, max(score.probability for score in answer.scores)


async def look(stubs: Stubs, item: Item) -> Answer:
    """What never changes: health, the policies and the models' names."""
    health = await stubs.health.Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S)
    policies = await stubs.moderation.ListPolicies(moderation_pb2.ListPoliciesRequest(), timeout=TIMEOUT_S)
    models = await stubs.models.ListModels(model_pb2.ListModelsRequest(), timeout=TIMEOUT_S)
    names = [model.name for model in models.models]
    shown = await stubs.models.GetModel(model_pb2.GetModelRequest(name=names[0]), timeout=TIMEOUT_S)
    return f"{health.status} {len(policies.policies)} {names} {shown.model.state}", 0.0


#: How often each comes among a hundred requests, and which are about a verdict.
MIX: dict[Ask, int] = {
    classify: 36,
    batch: 8,
    stream_classify: 14,
    generate: 8,
    stream_generate: 8,
    guarded: 10,
    tag: 8,
    look: 8,
}
JUDGING = (classify, batch, stream_classify, guarded)


@dataclass
class Known:
    """The answers when each was asked alone; ``items`` of which the model is sure, of both kinds."""

    items: list[Item] = field(default_factory=list)
    answers: dict[tuple[Ask, Item], Answer] = field(default_factory=dict)

    def right(self, ask: Ask, item: Item, answer: Answer) -> bool:
        """Whether it is the known answer, and what is unsafe was blocked."""
        text, score = self.answers[ask, item]
        if ask in JUDGING and not answer[0].startswith("unsafe" if item.unsafe else "safe"):
            return False
        return answer[0] == text and abs(answer[1] - score) <= SCORE_TOLERANCE


async def learn(stubs: Stubs, items: list[Item], at_most: int) -> Known:
    """Ask everything once, one at a time; an item that the model gets wrong is left out."""
    known = Known()
    for unsafe in (True, False):
        kept = 0
        for item in (item for item in items if item.unsafe == unsafe):
            answers = {ask: await ask(stubs, item) for ask in MIX}
            if kept < at_most and all(answers[ask][0].startswith(_name(unsafe)) for ask in JUDGING):
                known.items.append(item)
                known.answers |= {(ask, item): answer for ask, answer in answers.items()}
                kept += 1
            if kept == at_most:
                break
    return known


async def pause(chance: Random, longest_s: float) -> None:
    """Up to ``longest_s`` seconds."""
    await asyncio.sleep(chance.random() * longest_s)


def _name(unsafe: bool) -> str:
    return "unsafe" if unsafe else "safe"


def _verdict(answer: moderation_pb2.ClassifyResponse) -> Answer:
    return _name(answer.verdict == moderation_pb2.VERDICT_UNSAFE), answer.unsafe_score
