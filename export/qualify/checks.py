"""The checks that need no exported graph: prompts, token ids, and what the answer tokens spell."""

from __future__ import annotations

import tempfile
from pathlib import Path

from tokenizers import Tokenizer as HfTokenizer

from export.checkpoint.model import Checkpoint
from export.qualify.lines import Result
from export.template_check import check_template
from guard.bundle.guard_format import GuardFormat
from guard.bundle.manifest import Task


def check_prompts(checkpoint: Checkpoint, task: Task, guard: GuardFormat | None) -> Result:
    """Our prompts against the checkpoint's own chat template, in bytes and token ids; raises ParityError."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "tokenizer.json"
        path.write_bytes(checkpoint.tokenizer_json)
        said = check_template(checkpoint, task, guard, path)
    own = guard is not None and checkpoint.guard_format is not None
    return ("SKIPPED" if own else "PASS"), said


def check_answer_tokens(checkpoint: Checkpoint, guard: GuardFormat) -> Result:
    """Each label is one token of its own, and the tokenizer reads the answer's text back to the same ids."""
    tokenizer = HfTokenizer.from_str(checkpoint.tokenizer_json.decode())
    answer = guard.answer
    labels = {"safe": answer.safe, "unsafe": answer.unsafe, **answer.categories}
    if len(set(labels.values())) != len(labels):
        return "FAIL", "two labels have the same token"
    if max(answer.head_token_ids()) >= checkpoint.spec.vocab_size:
        return "FAIL", "a label's token id is outside the vocabulary"
    for label, token in labels.items():
        if label in ("safe", "unsafe"):
            ids = [*answer.before_verdict, token]
        else:
            ids = [*answer.before_verdict, answer.unsafe, *answer.before_category, token]
        text = tokenizer.decode(ids, skip_special_tokens=False)
        if tokenizer.encode(text, add_special_tokens=False).ids != ids:
            return "FAIL", f"{label}: its answer's text is tokenized to other ids"
        if checkpoint.guard_format is None and text != _llama_guard_answer(label):  # an adapter's words are its own
            return "FAIL", f"{label}: its tokens do not spell the answer"
    spelled = ", ".join(f"{label} {tokenizer.decode([token]).strip()!r}" for label, token in labels.items())
    return "PASS", f"{len(labels)} labels, one token each: {spelled}"


def _llama_guard_answer(label: str) -> str:
    return f"\n\n{label}" if label in ("safe", "unsafe") else f"\n\nunsafe\n{label}"
