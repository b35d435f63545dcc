"""Named policies, shadow mode, lists and the verdict cache over the wire."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from guard.v1.model_pb2 import GetModelRequest, ListModelsRequest
from guard.v1.moderation_pb2 import (
    ACTION_ALLOW,
    ACTION_BLOCK,
    ACTION_REPORT,
    DECIDED_BY_ALLOW_LIST,
    DECIDED_BY_CACHE,
    DECIDED_BY_DENY_LIST,
    DECIDED_BY_MODEL,
    POLICY_ACTION_BLOCK,
    POLICY_ACTION_SHADOW,
    TEXT_VIEW_NORMALIZED,
    VERDICT_SAFE,
    VERDICT_UNSAFE,
    BatchClassifyRequest,
    ClassifyRequest,
    ListPoliciesRequest,
    Policy,
    StreamClassifyFinish,
    StreamClassifyRequest,
    StreamClassifyStart,
)
from server.errors import SettingsError

from .fakes import BROKEN_MARK, UNSAFE_MARK, FakeModels
from .running import Running, question, refused, running

FILE = f"""
default: standard
policies:
  standard: {{threshold: 0.9, deny: [{{name: codename, phrase: project zeta}}]}}
  lenient: {{extends: standard, threshold: 0.999, category_thresholds: {{S1: 1, S2: 0.9999}}, deny: []}}
  trial: {{extends: standard, action: shadow}}
  friendly: {{extends: standard, allow: ["{UNSAFE_MARK} bread"]}}
"""


@pytest.fixture
async def server(models: FakeModels, tmp_path: Path) -> AsyncIterator[Running]:
    path = tmp_path / "policies.yaml"
    path.write_text(FILE)
    async with running(models, policies=path, cache_entries=100) as started:
        yield started


async def classify(server: Running, text: str, **fields: Any) -> Any:
    return await server.moderation.Classify(question(text, **fields))


async def test_a_request_names_its_policy(server: Running) -> None:
    default = await classify(server, UNSAFE_MARK)
    assert (default.policy_name, default.verdict, default.action) == ("standard", VERDICT_UNSAFE, ACTION_BLOCK)
    lenient = await classify(server, UNSAFE_MARK, policy_name="lenient")
    assert (lenient.policy_name, lenient.verdict, lenient.action) == ("lenient", VERDICT_SAFE, ACTION_ALLOW)
    built_in = await classify(server, UNSAFE_MARK, policy_name="default")
    assert (built_in.policy_name, built_in.verdict) == ("default", VERDICT_UNSAFE)
    assert len({answer.policy_digest for answer in (default, lenient, built_in)}) == 3
    assert default.unsafe_score == lenient.unsafe_score


async def test_fields_of_the_request_go_before_those_of_the_named_policy(server: Running) -> None:
    changed = await classify(server, UNSAFE_MARK, policy_name="lenient", policy=Policy(category_thresholds={"S2": 0.5}))
    assert (changed.policy_name, changed.verdict) == ("lenient", VERDICT_UNSAFE)
    excluded = await classify(server, "x project zeta", policy=Policy(excluded_categories=["S2"]))
    assert (excluded.verdict, excluded.decided_by) == (VERDICT_UNSAFE, DECIDED_BY_DENY_LIST)  # the list stays
    shadow = await classify(server, UNSAFE_MARK, policy=Policy(action=POLICY_ACTION_SHADOW))
    assert (shadow.verdict, shadow.action) == (VERDICT_UNSAFE, ACTION_REPORT)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"policy_name": "canary-name"}, "policy_name"),
        ({"policy_name": "x" * 100_000}, "policy_name"),
        ({"policy": Policy(action=7)}, "policy.action"),  # type: ignore[arg-type]
    ],
)
async def test_what_cannot_be_applied_is_refused(server: Running, fields: dict[str, Any], field: str) -> None:
    answer = await refused(server.moderation.Classify(question("x", **fields)))
    assert answer.code is grpc.StatusCode.INVALID_ARGUMENT
    assert list(answer.fields) == [field]
    assert "canary" not in answer.everything


async def test_shadow_mode_reports_and_never_blocks(server: Running) -> None:
    unsafe = await classify(server, UNSAFE_MARK, policy_name="trial")
    assert (unsafe.verdict, unsafe.action) == (VERDICT_UNSAFE, ACTION_REPORT)
    denied = await classify(server, "project zeta", policy_name="trial")
    assert (denied.verdict, denied.action) == (VERDICT_UNSAFE, ACTION_REPORT)
    assert (await classify(server, "bread", policy_name="trial")).action == ACTION_ALLOW
    over = await classify(server, UNSAFE_MARK, policy_name="trial", policy=Policy(action=POLICY_ACTION_BLOCK))
    assert over.action == ACTION_BLOCK


async def test_lists_decide_without_the_model(server: Running, models: FakeModels) -> None:
    steps = models.runners["guard"].steps
    denied = await classify(server, "all about ｐｒｏｊｅｃｔ zeta")
    assert (denied.verdict, denied.unsafe_score, list(denied.categories)) == (VERDICT_UNSAFE, 1.0, [])
    assert (denied.decided_by, denied.matched_entry) == (DECIDED_BY_DENY_LIST, "codename")
    assert (denied.view, denied.window.count, denied.passes) == (TEXT_VIEW_NORMALIZED, 1, 0)
    allowed = await classify(server, f"{UNSAFE_MARK} Bread", policy_name="friendly")
    assert (allowed.verdict, allowed.decided_by, allowed.matched_entry) == (VERDICT_SAFE, DECIDED_BY_ALLOW_LIST, "0")
    assert models.runners["guard"].steps == steps
    more = await classify(server, f"{UNSAFE_MARK} bread and more", policy_name="friendly")
    assert (more.verdict, more.decided_by) == (VERDICT_UNSAFE, DECIDED_BY_MODEL)


async def test_streams_name_policies_too(server: Running) -> None:
    steps = [
        StreamClassifyRequest(start=StreamClassifyStart(target="TARGET_PROMPT", policy_name="trial")),
        StreamClassifyRequest(text="now about project "),
        StreamClassifyRequest(text="zeta"),
        StreamClassifyRequest(finish=StreamClassifyFinish()),
    ]
    answers = [answer async for answer in server.moderation.StreamClassify(iter(steps))]
    result = answers[-1].result
    assert (result.verdict, result.action, result.policy_name) == (VERDICT_UNSAFE, ACTION_REPORT, "trial")
    assert (result.decided_by, result.matched_entry) == (DECIDED_BY_DENY_LIST, "codename")


async def test_list_policies(server: Running) -> None:
    answer = await server.moderation.ListPolicies(ListPoliciesRequest())
    assert [each.name for each in answer.policies] == ["default", "friendly", "lenient", "standard", "trial"]
    assert [each.name for each in answer.policies if each.is_default] == ["standard"]
    found = {each.name: each for each in answer.policies}
    assert found["lenient"].policy.category_thresholds == {"S1": 1.0, "S2": 0.9999}
    assert found["trial"].policy.action == POLICY_ACTION_SHADOW
    assert (found["standard"].deny_entries, found["friendly"].allow_entries) == (1, 1)
    assert found["standard"].digest == (await classify(server, "bread")).policy_digest
    assert "zeta" not in str(answer)


async def test_a_repeated_question_is_answered_from_the_cache(server: Running, models: FakeModels) -> None:
    first = await classify(server, f"{UNSAFE_MARK} it")
    steps = models.runners["guard"].steps
    again = await classify(server, f"{UNSAFE_MARK} it")
    assert (first.decided_by, again.decided_by) == (DECIDED_BY_MODEL, DECIDED_BY_CACHE)
    assert (again.verdict, again.unsafe_score, again.categories) == (
        first.verdict,
        first.unsafe_score,
        first.categories,
    )
    assert again.usage.prompt_tokens == again.usage.cached_tokens > 0
    assert again.usage.completion_tokens == 0
    batch = BatchClassifyRequest(requests=[question(f"{UNSAFE_MARK} it"), question("bread"), question("bread")])
    answers = [result.response for result in (await server.moderation.BatchClassify(batch)).results]
    assert [answer.verdict for answer in answers] == [VERDICT_UNSAFE, VERDICT_SAFE, VERDICT_SAFE]
    assert answers[0].decided_by == DECIDED_BY_CACHE
    assert models.runners["guard"].steps > steps
    steps = models.runners["guard"].steps
    for fields in ({"policy_name": "lenient"}, {"policy": Policy(threshold=0.8)}):
        assert (await classify(server, f"{UNSAFE_MARK} it", **fields)).decided_by == DECIDED_BY_MODEL
    assert models.runners["guard"].steps > steps
    shown = (await server.models.GetModel(GetModelRequest(name="tiny-guard"))).model.verdict_cache
    assert (shown.hits + shown.misses, shown.entries) == (7, 4)
    assert shown.hits in (2, 3)  # the two equal items of the batch may have been asked before either was answered
    assert shown.bytes > 1024 * shown.entries


async def test_an_error_is_not_cached(server: Running, models: FakeModels) -> None:
    """Failure test 16."""
    steps = 0
    for _ in range(2):
        answer = await refused(server.moderation.Classify(question(BROKEN_MARK)))
        assert answer.info.reason == "MODEL_OUTPUT_UNREADABLE"
        assert models.runners["guard"].steps > steps
        steps = models.runners["guard"].steps


async def test_the_cache_can_be_switched_off(models: FakeModels) -> None:
    async with running(models, cache_entries=0) as server:
        for _ in range(2):
            assert (await classify(server, "bread")).decided_by == DECIDED_BY_MODEL
        for model in (await server.models.ListModels(ListModelsRequest())).models:
            assert not model.HasField("verdict_cache")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("policies: {p: {excluded_categories: [S14]}}", r"policies\.p: excluded_categories: this model has no"),
        (
            "policies: {p: {custom_categories: [{code: S50, name: Mine}]}}",
            r"policies\.p: custom_categories: this model",
        ),
    ],
)
async def test_a_model_that_cannot_judge_a_policy_is_not_served(
    models: FakeModels, tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "policies.yaml"
    path.write_text(text)
    async with running(models, load=False, policies=path) as server:
        with pytest.raises(SettingsError, match=message):
            await server.app.load()
        assert not await server.serving()
        answer = await refused(server.moderation.Classify(ClassifyRequest(messages=question("x").messages)))
        assert answer.code is grpc.StatusCode.FAILED_PRECONDITION


async def test_a_broken_file_stops_the_start(models: FakeModels, tmp_path: Path) -> None:
    path = tmp_path / "policies.yaml"
    path.write_text("policies: {p: {treshold: 0.5}}")
    with pytest.raises(SettingsError, match=r"policies\.p\.treshold: is unknown"):
        async with running(models, policies=path):
            pass
