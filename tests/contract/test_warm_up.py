"""A model that health calls SERVING has answered already: the first request pays for nothing that happens only once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import pytest

from guard.classifier import Classifier
from guard.engine.settings import EngineSettings
from guard.errors import BundleError
from guard.generator import Generator
from guard.v1.generation_pb2 import ChoiceFormat, GenerateRequest, ResponseFormat
from guard.v1.model_pb2 import LoadModelRequest
from guard.v1.moderation_pb2 import Policy
from server.registry import load_model

from .running import message, question, refused, running
from .scraping import scrape

EXCLUDING = "policies: {mild: {excluded_categories: [S6]}}\ndefault: mild\n"


async def test_the_first_judgements_find_their_beginning(bundles: Path) -> None:
    async with running(load_model, guard=bundles / "guard", instruct=None, metrics_address="127.0.0.1:0") as server:
        assert await server.serving("guard.v1.ModerationService")
        before = await scrape(server)
        answers = [await server.moderation.Classify(question(*texts)) for texts in (["bread"], ["bread", "rolls"])]
        after = await scrape(server)
    assert all(answer.usage.cached_tokens > 50 for answer in answers)
    assert after.value("guard_prefix_hits_total") == before.value("guard_prefix_hits_total") + 2
    assert after.value("guard_prefix_misses_total") == before.value("guard_prefix_misses_total")
    assert before.value("guard_verdict_cache_entries") == 0


async def test_so_they_do_under_the_policy_of_requests_that_name_none(bundles: Path, tmp_path: Path) -> None:
    policies = tmp_path / "policies.yaml"
    policies.write_text(EXCLUDING)
    async with running(load_model, guard=bundles / "guard", instruct=None, policies=policies) as server:
        assert (await server.moderation.Classify(question("bread"))).usage.cached_tokens > 50
        # Another policy's prompts begin differently, so it is not by chance.
        other = question("bread", policy=Policy(excluded_categories=["S1"]))
        assert (await server.moderation.Classify(other)).usage.cached_tokens == 0


async def test_a_generation_and_a_format_have_been_tried(bundles: Path) -> None:
    async with running(load_model, guard=None, instruct=bundles / "instruct") as server:
        generator = server.app.registry.instruct()[1]
        stats = generator.engine.stats
        assert stats.prefill_tokens > 0
        assert stats.decode_tokens == 1
        assert generator._formats._tokenizer is not None
        request = GenerateRequest(
            messages=[message("hi")],
            max_tokens=20,
            response_format=ResponseFormat(choice=ChoiceFormat(choices=["left", "right"])),
        )
        assert (await server.generation.Generate(request)).text in ("left", "right")


@pytest.mark.parametrize("kind", [Classifier, Generator])
def test_a_model_that_fails_when_it_is_tried_is_not_loaded(
    bundles: Path, monkeypatch: pytest.MonkeyPatch, kind: type
) -> None:
    closed = []
    monkeypatch.setattr(kind, "close", lambda self: closed.append(self.engine.close()))
    monkeypatch.setattr("guard.engine.scheduler.Scheduler._prefill", broken)
    task = "guard" if kind is Classifier else "instruct"
    with pytest.raises(BundleError, match="loads but does not"):
        load_model(bundles / task, task, EngineSettings(threads=1))  # type: ignore[arg-type]
    assert len(closed) == 1


async def test_a_reload_that_fails_when_it_is_tried_is_rolled_back(
    bundles: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"guard": bundles / "guard", "instruct": None, "admin": True, "model_directory": bundles}
    async with running(load_model, **settings) as server:
        name = server.app.registry.entries()[0].name
        monkeypatch.setattr(Classifier, "warm_up", broken)
        answer = await refused(server.models.LoadModel(LoadModelRequest(bundle="guard", replace=name)))
        assert answer.code is grpc.StatusCode.FAILED_PRECONDITION
        assert (await server.moderation.Classify(question("bread"))).verdict


def broken(*_: object) -> None:
    raise BundleError("the graph is broken")
