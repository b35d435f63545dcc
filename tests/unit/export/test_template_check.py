from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from export.checkpoint import open_checkpoint
from export.checkpoint.model import Checkpoint
from export.synthetic_adapter import llama_guard_format
from export.template_check import check_template
from guard.bundle.guard_format import GuardFormat
from guard.errors import CheckpointError, ParityError


@pytest.fixture(scope="module")
def guard(tiny_guard: Path) -> tuple[Checkpoint, GuardFormat, Path]:
    checkpoint = open_checkpoint(str(tiny_guard))
    return checkpoint, llama_guard_format(checkpoint.tokenizer_json), tiny_guard / "tokenizer.json"


def test_our_guard_prompt_is_the_templates(guard: tuple[Checkpoint, GuardFormat, Path]) -> None:
    checkpoint, guard_format, tokenizer = guard
    assert check_template(checkpoint, "guard", guard_format, tokenizer).startswith("6 conversations equal")


@pytest.mark.parametrize(
    ("change", "offset"),
    [
        ({"opening": "X"}, "at byte 0"),
        ({"turn": "{role}: {content}\n"}, "at byte "),
        ({"closing": "{role}"}, "at byte "),
        ({"category_line": "{code}:  {name}\n"}, "at byte "),
    ],
)
def test_any_other_format_is_refused_by_conversation_and_offset(
    guard: tuple[Checkpoint, GuardFormat, Path], change: dict[str, str], offset: str
) -> None:
    checkpoint, guard_format, tokenizer = guard
    with pytest.raises(ParityError, match=rf"conversation of 1 turns: the prompt differs .* {offset}"):
        check_template(checkpoint, "guard", replace(guard_format, **change), tokenizer)  # type: ignore[arg-type]


def test_answer_tokens_must_be_the_tokenizers(guard: tuple[Checkpoint, GuardFormat, Path]) -> None:
    checkpoint, guard_format, tokenizer = guard
    answer = replace(guard_format.answer, categories={**guard_format.answer.categories, "S3": 5})
    with pytest.raises(ParityError, match=r"answer S3: token ids differ .* at token 4"):
        check_template(checkpoint, "guard", replace(guard_format, answer=answer), tokenizer)


def test_a_format_from_an_adapter_has_nothing_to_be_compared_with(
    guard: tuple[Checkpoint, GuardFormat, Path],
) -> None:
    checkpoint, guard_format, tokenizer = guard
    adapted = replace(checkpoint, guard_format=guard_format)
    assert "came with its adapter" in check_template(adapted, "guard", guard_format, tokenizer)


def test_the_instruct_template(tiny: Path) -> None:
    checked = check_template(open_checkpoint(str(tiny)), "instruct", None, tiny / "tokenizer.json")
    assert checked.startswith("6 conversations equal")


def with_template(tiny: Path, template: str | None) -> Checkpoint:
    return replace(open_checkpoint(str(tiny)), chat_template=template)


def check(tiny: Path, template: str | None) -> str:
    return check_template(with_template(tiny, template), "instruct", None, tiny / "tokenizer.json")


def test_no_template_is_refused(tiny: Path) -> None:
    with pytest.raises(CheckpointError, match="no chat template"):
        check(tiny, None)


def test_a_broken_template_is_refused(tiny: Path) -> None:
    with pytest.raises(CheckpointError, match="not valid Jinja"):
        check(tiny, "{% for %}")


def test_a_template_that_rewrites_texts_is_refused(tiny: Path) -> None:
    template = "{{ bos_token }}{% for m in messages %}{{ m.role }}:{{ m.content | upper }}{% endfor %}"
    with pytest.raises(ParityError, match="rewrites message text"):
        check(tiny, template)


def test_a_template_without_system_messages_is_checked_on_the_others(tiny: Path) -> None:
    template = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}"
        "{{ m.role }}: {{ m.content | trim }}<|eot_id|>{% endfor %}assistant:"
    )
    assert check(tiny, template).startswith("3 conversations equal")


def test_a_template_that_refuses_everything_is_refused(tiny: Path) -> None:
    with pytest.raises(CheckpointError, match="refuses every conversation"):
        check(tiny, "{{ raise_exception('no') }}")


def test_templates_run_in_a_sandbox(tiny: Path) -> None:
    with pytest.raises(CheckpointError, match="refuses every conversation"):
        check(tiny, "{{ messages.__class__.__mro__ }}")
