"""OpenAI's own clients against a real server with the embedded models: the ``openai`` package, and the AI SDK."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from .facade import ROOT, UNSAFE, node, ran_by_node, served

MODERATED = {"guardlet": {"moderation": True}}
SAFE = "Name three colours."
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Oslo", "Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


@pytest.fixture(scope="module")
def url(serve_flags: list[str]) -> Iterator[str]:
    with served(serve_flags) as (_, found):
        yield found


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0, timeout=120) as found:
        yield found


def chat(client: openai.OpenAI, messages: list[Any], model: str = "default", **fields: Any) -> Any:
    """A completion, untyped: what comes back is what is tested."""
    return client.chat.completions.create(model=model, messages=messages, **fields)


def test_moderations(client: openai.OpenAI) -> None:
    answer = client.moderations.create(input=[SAFE, UNSAFE])
    safe, unsafe = answer.results
    assert answer.model == "embedded-guard"
    assert not safe.flagged and unsafe.flagged
    raised = [name for name, flagged in unsafe.categories.model_dump().items() if flagged]
    assert raised
    assert not any(safe.categories.model_dump().values())
    assert max(value for value in unsafe.category_scores.model_dump().values() if value is not None) > 0.3
    assert unsafe.model_dump()["guardlet"]["verdict"] == "VERDICT_UNSAFE"


def test_chat(client: openai.OpenAI) -> None:
    answer = chat(client, messages=[{"role": "user", "content": SAFE}], max_completion_tokens=24, temperature=0)
    assert answer.choices[0].message.content
    assert answer.usage is not None and answer.usage.completion_tokens <= 24


def test_stream(client: openai.OpenAI) -> None:
    stream = chat(
        client,
        model="embedded-instruct",
        messages=[{"role": "user", "content": SAFE}],
        max_tokens=24,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
        extra_body=MODERATED,
    )
    chunks = list(stream)
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text
    assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens <= 24
    assert chunks[-2].choices[0].finish_reason in ("stop", "length")


def test_an_unsafe_prompt_is_blocked(client: openai.OpenAI) -> None:
    asked: list[Any] = [{"role": "user", "content": UNSAFE}]
    whole = chat(client, messages=asked, max_tokens=24, extra_body=MODERATED)
    assert whole.choices[0].finish_reason == "content_filter"
    assert not whole.choices[0].message.content
    chunks = list(chat(client, messages=asked, max_tokens=24, stream=True, extra_body=MODERATED))
    assert not any(choice.delta.content for chunk in chunks for choice in chunk.choices)
    assert chunks[-1].choices[0].finish_reason == "content_filter"


def test_tools_and_their_results(client: openai.OpenAI) -> None:
    messages: list[Any] = [{"role": "user", "content": "What is the weather in Rome?"}]
    asked = chat(
        client,
        messages=messages,
        tools=[WEATHER],
        tool_choice="required",
        max_tokens=64,
        temperature=0,
    )
    (choice,) = asked.choices
    assert choice.finish_reason == "tool_calls" and choice.message.tool_calls
    call = choice.message.tool_calls[0]
    assert call.type == "function" and json.loads(call.function.arguments)["city"] in ("Oslo", "Rome")
    messages.append(choice.message.model_dump())
    messages += [
        {"role": "tool", "tool_call_id": other.id, "content": "sunny, 21 degrees"}
        for other in choice.message.tool_calls
    ]
    answer = chat(
        client,
        messages=messages,
        tools=[WEATHER],
        tool_choice="none",
        max_tokens=16,
        temperature=0,
    )
    assert answer.choices[0].message.content


def test_response_format(client: openai.OpenAI) -> None:
    schema = {"type": "object", "properties": {"colour": {"enum": ["red", "blue"]}}, "required": ["colour"]}
    answer = chat(
        client,
        messages=[{"role": "user", "content": "Name a colour."}],
        response_format={"type": "json_schema", "json_schema": {"name": "colour", "schema": schema, "strict": True}},
        max_tokens=64,
        temperature=0,
    )
    assert json.loads(answer.choices[0].message.content or "")["colour"] in ("red", "blue")


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["embedded-guard", "embedded-instruct"]


def test_errors_are_the_packages_own(client: openai.OpenAI) -> None:
    asked: list[Any] = [{"role": "user", "content": "hi"}]
    with pytest.raises(openai.NotFoundError):
        chat(client, model="no-such-model", messages=asked)
    with pytest.raises(openai.BadRequestError) as caught:
        chat(client, messages=[{"role": "user", "content": "word " * 20_000}])
    assert caught.value.code == "context_length_exceeded"


def test_the_ai_sdk(url: str) -> None:
    found = node("ai_sdk.mjs", f"{url}/v1", UNSAFE)
    assert found["stream"]["text"] == found["whole"]["text"] != ""
    assert found["stream"]["pieces"] >= 1 and found["stream"]["outputTokens"] == found["whole"]["outputTokens"] > 0
    assert found["stream"]["finishReason"] in ("stop", "length")
    for blocked in (found["blockedStream"], found["blockedWhole"]):
        assert (blocked["text"], blocked["finishReason"]) == ("", "content-filter")
    assert found["tools"]["finishReason"] == "tool-calls"
    assert all(
        call["name"] == "weather" and call["input"]["city"] in ("Oslo", "Rome") for call in found["tools"]["calls"]
    )
    assert found["tools"]["calls"]
    assert found["refused"]["status"] == 404


def example(language: str, url: str) -> str:
    """The program in docs/openai.md, for the server at ``url``."""
    found = re.search(rf"```{language}\n(.*?)```", (ROOT / "docs/openai.md").read_text(), re.DOTALL)
    assert found is not None and "http://127.0.0.1:8080" in found[1]
    return found[1].replace("http://127.0.0.1:8080", url)


def test_the_program_in_the_documentation(url: str) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", example("python", url)], capture_output=True, text=True, timeout=120, check=True
    )
    judged, answered = ran.stdout.split("\n", 1)
    assert re.fullmatch(r"(True|False) VERDICT_(UN)?SAFE 0\.\d+", judged)
    assert answered.startswith(("stop ", "length "))


def test_the_program_of_the_ai_sdk_in_the_documentation(url: str) -> None:
    program = example("ts", url)
    assert ran_by_node("docs.mjs", program).rstrip().endswith(("stop", "length"))
