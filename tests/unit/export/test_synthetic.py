from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from export.checkpoint import open_checkpoint
from export.synthetic import LLAMA_3_2_1B, TINY, TINY_LLAMA_3, chat_template, make_checkpoint
from export.synthetic_adapter import llama_guard_format
from export.synthetic_tokenizer import llama3_tokenizer
from guard.errors import InvalidInputError, UnsupportedError
from guard.prompt import LLAMA_GUARD_3_1B

DATA = Path(__file__).parents[2] / "data" / "llama_guard_3_1b"


def hashes(directory: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.iterdir()}


def test_same_arguments_same_bytes(tmp_path: Path) -> None:
    first = hashes(make_checkpoint(tmp_path / "a", seed=5))
    assert first == hashes(make_checkpoint(tmp_path / "b", seed=5))
    assert first["model.safetensors"] != hashes(make_checkpoint(tmp_path / "c", seed=6))["model.safetensors"]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("shards", [1, 3])
def test_a_made_checkpoint_opens(tmp_path: Path, tied: bool, shards: int) -> None:
    spec = replace(TINY, tied_embeddings=tied)
    checkpoint = open_checkpoint(str(make_checkpoint(tmp_path / "made", spec, dtype="F16", shards=shards)))
    assert checkpoint.spec == spec
    weights = checkpoint.tensors.read("model.layers.1.mlp.down_proj.weight")
    assert weights.std() == pytest.approx(spec.intermediate_size**-0.5, rel=0.05)
    assert checkpoint.tensors.read("model.norm.weight").mean() == pytest.approx(1, abs=0.1)


def test_an_existing_directory_is_left_alone(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="out"):
        make_checkpoint(tmp_path)
    assert not list(tmp_path.iterdir())


def test_shards_are_bounded(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="shards"):
        make_checkpoint(tmp_path / "a", shards=1000)


def test_a_given_tokenizer_must_have_llama_3_control_tokens(tmp_path: Path) -> None:
    made = json.loads(llama3_tokenizer(512, ()))
    made["added_tokens"] = made["added_tokens"][:4]
    made["post_processor"] = None
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(made))
    with pytest.raises(UnsupportedError, match="eot_id"):
        make_checkpoint(tmp_path / "made", tokenizer=path)
    path.write_bytes(llama3_tokenizer(400, ()))
    assert open_checkpoint(str(make_checkpoint(tmp_path / "made", tokenizer=path))).tokens.bos == 400 - 16


@pytest.fixture(scope="module")
def llama3() -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_str(llama3_tokenizer(TINY_LLAMA_3.vocab_size, ()).decode())


def test_labels_and_control_tokens_have_llama_3_ids(llama3: tokenizers.Tokenizer) -> None:
    answer = LLAMA_GUARD_3_1B.answer
    text = "\n\nunsafe\nS1,S10,S11,S12,S13<|eot_id|>"
    assert llama3.encode(text, add_special_tokens=False).ids == [
        *answer.before_verdict,
        answer.unsafe,
        *answer.before_category,
        answer.categories["S1"],
        *(token for code in ("S10", "S11", "S12", "S13") for token in (*answer.separator, answer.categories[code])),
        answer.end,
    ]
    assert llama3.encode("safe").ids == [128000, answer.safe]
    names = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>")
    assert [llama3.token_to_id(name) for name in names] == [128000, 128001, 128006, 128007, 128008]
    assert llama3.get_vocab_size() == LLAMA_3_2_1B.vocab_size


def test_the_format_of_a_whole_vocabulary_is_llama_guards_own() -> None:
    assert llama_guard_format(llama3_tokenizer(TINY_LLAMA_3.vocab_size, ())) == LLAMA_GUARD_3_1B


@pytest.mark.parametrize("vocab_size", [320, 512, 4096])
def test_small_vocabularies_have_single_label_tokens(vocab_size: int) -> None:
    answer = llama_guard_format(llama3_tokenizer(vocab_size, ())).answer
    ids = answer.head_token_ids()
    assert len(ids) == 20
    assert max(ids) < vocab_size


def test_a_vocabulary_too_small_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="vocab_size"):
        llama3_tokenizer(300, ())


def test_any_text_survives_the_tokenizer(llama3: tokenizers.Tokenizer) -> None:
    for text in ("def f(x):\n\treturn x ** 2  # 12345", "Größe 東京 🙂\u200d", " \n\n  two"):
        assert llama3.decode(llama3.encode(text, add_special_tokens=False).ids, skip_special_tokens=False) == text


def render(template: str, **variables: Any) -> str:
    """As transformers renders chat templates."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)

    def fail(message: str) -> None:
        raise TemplateError(message)

    return environment.from_string(template).render(raise_exception=fail, **variables)


@pytest.mark.parametrize(("turns", "name"), [(1, "user"), (2, "response")])
def test_the_guard_template_renders_the_published_prompt(turns: int, name: str) -> None:
    contents = [("user", "How do I kill a process in Linux?"), ("assistant", "Use kill -9 PID.")]
    messages = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in contents]
    expected = (DATA / f"llama-guard-3-1b.prompt-{name}.txt").read_text(encoding="utf-8")
    assert render(chat_template(guard=True), messages=messages[:turns]) == expected


SYSTEM = "<|start_header_id|>system<|end_header_id|>\n\n"
DATE = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"


def test_the_instruct_template_always_has_a_system_block() -> None:
    template = chat_template(guard=False)
    messages = [{"role": "user", "content": " Hi! \n"}]
    user = "<|start_header_id|>user<|end_header_id|>\n\nHi!<|eot_id|>"
    assistant = "<|start_header_id|>assistant<|end_header_id|>\n\n"
    plain = render(template, bos_token="<|begin_of_text|>", messages=messages, add_generation_prompt=True)
    assert plain == f"<|begin_of_text|>{SYSTEM}{DATE}<|eot_id|>{user}{assistant}"
    messages.insert(0, {"role": "system", "content": "Be brief. "})
    with_system = render(template, bos_token="", messages=messages, date_string="01 Feb 2025")
    assert with_system == f"{SYSTEM}{DATE.replace('26 Jul 2024', '01 Feb 2025')}Be brief.<|eot_id|>{user}"


def test_the_instruct_template_describes_tools_in_the_first_user_message() -> None:
    tool = {"type": "function", "function": {"name": "f", "description": "adds", "parameters": {}}}
    call = {"type": "function", "function": {"name": "f", "arguments": {"a": "é"}}}
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "Add."},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": {"sum": 3}},
    ]
    text = render(chat_template(guard=False), bos_token="", messages=messages, tools=[tool])
    assert text == (
        f"{SYSTEM}Environment: ipython\n{DATE}<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\n"
        "Given the following functions, please respond with a JSON for a function call with its proper arguments that "
        "best answers the given prompt.\n\nRespond in the format "
        '{"name": function name, "parameters": dictionary of argument name and its value}.Do not use variables.\n\n'
        f"{json.dumps(tool, indent=4)}\n\nAdd.<|eot_id|>"
        '<|start_header_id|>assistant<|end_header_id|>\n\n{"name": "f", "parameters": {"a": "é"}}<|eot_id|>'
        '<|start_header_id|>ipython<|end_header_id|>\n\n{"sum": 3}<|eot_id|>'
    )
    with pytest.raises(TemplateError, match="first user message"):
        render(chat_template(guard=False), bos_token="", messages=messages[1:], tools=[tool])
    messages[1]["tool_calls"] = [call, call]
    with pytest.raises(TemplateError, match="one tool call"):
        render(chat_template(guard=False), bos_token="", messages=messages, tools=[tool])
