"""guard generate and guard tag against a scripted server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from guard.cli import main
from guard.v1 import generation_pb2, moderation_pb2
from tests.unit.fake_server import FakeServer, judged, running

STOP = generation_pb2.FINISH_REASON_STOP
CALL = moderation_pb2.ToolCall(id="c1", name="weather", arguments_json='{"city":"Oslo"}')


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with running(FakeServer()) as fake:
        fake.handlers["StreamGenerate"] = stream(text="Hello")
        fake.handlers["Generate"] = lambda request, context: generation_pb2.GenerateResponse(
            text="Hello", finish_reason=STOP
        )
        yield fake


def stream(**last: Any) -> Any:
    fields: dict[str, Any] = {"finish_reason": STOP, "usage": moderation_pb2.Usage(completion_tokens=1)} | last
    return lambda request, context: iter([generation_pb2.StreamGenerateResponse(**fields)])


def generate(server: FakeServer, *options: str | Path) -> int:
    return main(["generate", "--address", server.address, *map(str, options), "hi"])


def test_sampling_options_are_sent(server: FakeServer) -> None:
    penalties = ["--repetition-penalty", "1.5", "--presence-penalty", "-1", "--frequency-penalty", "0.5"]
    assert generate(server, "--min-p", "0.25", "--top-p", "0.5", "--seed", "0", *penalties) == 0
    (request,) = server.requests("StreamGenerate")
    assert (request.min_p, request.top_p, request.seed) == (0.25, 0.5, 0)
    assert (request.repetition_penalty, request.presence_penalty, request.frequency_penalty) == (1.5, -1.0, 0.5)
    assert not request.HasField("temperature")


def test_plain_text_is_sent_without_messages(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate(server, "--plain") == 0
    (request,) = server.requests("StreamGenerate")
    assert (request.prompt, len(request.messages)) == ("hi", 0)
    assert generate(server, "--plain", "--system", "Be brief.") == 1
    assert "--plain" in capsys.readouterr().err


def test_several_choices_are_printed_one_by_one(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.handlers["Generate"] = lambda request, context: generation_pb2.GenerateResponse(
        text="One",
        finish_reason=STOP,
        further_choices=[generation_pb2.Choice(text="Two", finish_reason=generation_pb2.FINISH_REASON_LENGTH)],
    )
    assert generate(server, "--choices", "2") == 0
    assert capsys.readouterr().out == "--- 1 (stop)\nOne\n--- 2 (length)\nTwo\n"
    assert server.requests("Generate")[0].choices == 2


def test_logprobs_come_as_json(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.handlers["Generate"] = lambda request, context: generation_pb2.GenerateResponse(
        text="Hi", finish_reason=STOP, logprobs=[generation_pb2.TokenLogprob(token_id=3, text="Hi", logprob=-0.5)]
    )
    assert generate(server, "--logprobs", "2", "--json") == 0
    (token,) = json.loads(capsys.readouterr().out)["logprobs"]
    assert token == {"token_id": 3, "text": "Hi", "logprob": -0.5, "top": []}
    assert generate(server, "--logprobs", "2") == 1
    assert "--json" in capsys.readouterr().err


def test_forms_of_the_answer(server: FakeServer, tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "array"}')
    for options in (["--json-schema", schema], ["--regex", "a+"], ["--choice", "yes", "--choice", "no"]):
        assert generate(server, *options) == 0
    first, second, third = (request.response_format for request in server.requests("StreamGenerate"))
    assert json.loads(first.json_schema.schema) == {"type": "array"}
    assert second.regex.pattern == "a+"
    assert list(third.choice.choices) == ["yes", "no"]


@pytest.mark.parametrize("text", ["{", "[1]", "\ud800"])
def test_a_schema_that_is_none_is_refused(
    server: FakeServer, tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    schema = tmp_path / "schema.json"
    schema.write_bytes(text.encode(errors="surrogatepass"))
    assert generate(server, "--json-schema", schema) == 1
    assert "--json-schema" in capsys.readouterr().err
    assert server.calls == []


def test_tools_are_read_and_calls_printed(
    server: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.handlers["StreamGenerate"] = stream(tool_calls=[CALL], finish_reason=generation_pb2.FINISH_REASON_TOOL_CALLS)
    tools = tmp_path / "tools.json"
    tools.write_text('[{"name": "weather", "description": "Now.", "parameters": {"type": "object"}}, {"name": "f"}]')
    assert generate(server, "--tools", tools, "--tool-choice", "required") == 0
    assert capsys.readouterr().out == 'weather({"city":"Oslo"})\n'
    assert generate(server, "--tools", tools, "--tool-choice", "weather") == 0
    required, named = server.requests("StreamGenerate")
    assert [(tool.name, tool.description) for tool in required.tools] == [("weather", "Now."), ("f", "")]
    assert json.loads(required.tools[0].parameters_json_schema) == {"type": "object"}
    assert (required.tool_choice, required.tool_choice_name) == (generation_pb2.TOOL_CHOICE_REQUIRED, "")
    assert (named.tool_choice, named.tool_choice_name) == (generation_pb2.TOOL_CHOICE_AUTO, "weather")


@pytest.mark.parametrize(
    "value",
    [
        {},
        [1],
        [{"description": "x"}],
        [{"name": 1}],
        [{"name": "f", "description": 2}],
        [{"name": "f", "parameters": []}],
        [{"name": "f", "strict": True}],
    ],
)
def test_tools_that_are_none_are_refused(
    server: FakeServer, tmp_path: Path, value: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    tools = tmp_path / "tools.json"
    tools.write_text(json.dumps(value))
    assert generate(server, "--tools", tools) == 1
    assert "--tools" in capsys.readouterr().err
    assert server.calls == []


def test_a_withheld_answer_exits_3(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.handlers["StreamGenerate"] = stream(
        finish_reason=generation_pb2.FINISH_REASON_CONTENT_FILTER,
        moderation=generation_pb2.ModerationResult(input=judged()),
    )
    assert generate(server, "--moderate") == 3
    assert "withheld" in capsys.readouterr().err
    (request,) = server.requests("StreamGenerate")
    assert request.moderation.check_input and request.moderation.check_output


def test_tag(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.handlers["Tag"] = lambda request, context: generation_pb2.TagResponse(
        model="fake",
        label="spam",
        scores=[
            generation_pb2.LabelScore(name="spam", probability=0.75),
            generation_pb2.LabelScore(name="news", probability=0.25),
        ],
        usage=moderation_pb2.Usage(prompt_tokens=40),
    )
    command = ["tag", "--address", server.address, "--label", "news", "--label", "spam=Advertising."]
    assert main([*command, "--instruction", "Sort mail.", "--uncalibrated", "Buy!"]) == 0
    assert capsys.readouterr().out == "spam   fake, 40 tokens, 0 ms\n  0.750  spam\n  0.250  news\n"
    assert main([*command, "--json", "Buy!"]) == 0
    assert json.loads(capsys.readouterr().out)["label"] == "spam"
    first, second = server.requests("Tag")
    assert [(label.name, label.description) for label in first.labels] == [("news", ""), ("spam", "Advertising.")]
    assert (first.instruction, first.uncalibrated, second.uncalibrated) == ("Sort mail.", True, False)
    assert [message.content for message in first.messages] == ["Buy!"]
