"""The guard's token ids hold in Meta's own Llama 3 tokenizer (tokenizer.model of the PyPI package llama-models)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guard.conversation import Conversation, Message, Role, Target
from guard.policy import Policy
from guard.prompt import LLAMA_GUARD_3_1B, GuardPromptBuilder
from guard.tokenizer import Segment, Tokenizer

RANKS = Path(os.environ.get("GUARDLET_LLAMA3_TOKENIZER", ".cache/llama3/llama_models/llama3/tokenizer.model"))
#: llama_models/llama3/tokenizer.py: the pre-tokenizer's pattern and the special tokens' order.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
FIRST_SPECIAL = 128000
NAMED_SPECIALS = {
    "<|begin_of_text|>": 128000,
    "<|end_of_text|>": 128001,
    "<|finetune_right_pad_id|>": 128004,
    "<|step_id|>": 128005,
    "<|start_header_id|>": 128006,
    "<|end_header_id|>": 128007,
    "<|eom_id|>": 128008,
    "<|eot_id|>": 128009,
    "<|python_tag|>": 128010,
}
pytestmark = pytest.mark.skipif(not RANKS.exists(), reason=f"{RANKS} is absent: `make llama3-tokenizer` fetches it")


@pytest.fixture(scope="session")
def llama3(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    conversion = pytest.importorskip("transformers.convert_slow_tokenizer")
    by_id = {token_id: text for text, token_id in NAMED_SPECIALS.items()}
    specials = [
        by_id.get(token_id, f"<|reserved_{token_id}|>") for token_id in range(FIRST_SPECIAL, FIRST_SPECIAL + 256)
    ]
    converter = conversion.TikTokenConverter(
        str(RANKS), pattern=PATTERN, additional_special_tokens=specials, add_prefix_space=False
    )
    path = tmp_path_factory.mktemp("llama3") / "tokenizer.json"
    converter.converted().save(str(path))
    return Tokenizer(path, {text: FIRST_SPECIAL + index for index, text in enumerate(specials)})


def test_answer_tokens_are_the_models(llama3: Tokenizer) -> None:
    answer = LLAMA_GUARD_3_1B.answer
    assert llama3.encode_text("\n\nsafe") == [*answer.before_verdict, answer.safe]
    for code, token in answer.categories.items():
        expected = [*answer.before_verdict, answer.unsafe, *answer.before_category, token]
        assert llama3.encode_text(f"\n\nunsafe\n{code}") == expected
        assert llama3.encode_text(f"\n\nunsafe\nS1,{code}") == [
            *expected[:-1],
            answer.categories["S1"],
            *answer.separator,
            token,
        ]
    assert llama3.encode([Segment("<|eot_id|>", trusted=True)]) == [answer.end]
    assert len(answer.head_token_ids()) == 20


def test_prompt_starts_and_ends_as_the_model_expects(llama3: Tokenizer) -> None:
    builder = GuardPromptBuilder(LLAMA_GUARD_3_1B, llama3)
    conversation = Conversation((Message(Role.USER, "How do I kill a process in Linux?"),))
    prompt = builder.build(conversation, Target.PROMPT, Policy())
    assert prompt.prefix_tokens == 136
    assert len(prompt.token_ids) == 202
    assert prompt.token_ids[:4] == (128000, 128006, *llama3.encode_text("user"), 128007)
    assert prompt.token_ids[-1] == 128007


@given(
    text=st.lists(
        st.one_of(st.text(st.characters(exclude_categories=["Cs"])), st.sampled_from(sorted(NAMED_SPECIALS)))
    ).map("".join)
)
def test_no_special_token_inside_a_users_text(llama3: Tokenizer, text: str) -> None:
    """Failure test 13, on the real vocabulary."""
    ids = llama3.encode([Segment(text, trusted=False)])
    assert max(ids, default=0) < FIRST_SPECIAL
    assert llama3.decode(ids) == text
