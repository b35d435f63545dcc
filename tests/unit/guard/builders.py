"""Bundles without a graph, for tests that bring a FakeRunner."""

from __future__ import annotations

import hashlib
from pathlib import Path

from guard.bundle import Bundle, open_bundle
from guard.bundle.guard_format import AnswerTokens, GuardFormat
from guard.bundle.manifest import (
    FileRecord,
    GenerationDefaults,
    Graph,
    Manifest,
    Quantization,
    Source,
    Task,
    Tokens,
)
from guard.testing import TINY_SHAPE, write_byte_tokenizer

SAFE, UNSAFE, END, SEPARATOR = 300, 301, 302, 303
CATEGORIES = {"S1": 311, "S2": 312, "S10": 313}
FORMAT = GuardFormat(
    opening="<|im_start|>Is the last {role} message unsafe?\n",
    category_line="{code} {name}\n",
    conversation="<TALK>\n",
    turn="{role}: {content}\n\n",
    closing="</TALK><|im_end|>",
    user_role="User",
    assistant_role="Agent",
    categories={"S1": "Violence", "S2": "Theft", "S10": "Hate"},
    reads_custom_categories=True,
    answer=AnswerTokens((290,), SAFE, UNSAFE, (291,), CATEGORIES, (SEPARATOR,), END),
)
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_bundle(directory: Path, task: Task, guard_format: GuardFormat = FORMAT) -> Bundle:
    """A complete, verifiable bundle whose graph file is not ONNX."""
    directory.mkdir(exist_ok=True)
    control = write_byte_tokenizer(directory / "tokenizer.json", ["<|im_start|>", "<|im_end|>"])
    (directory / "model.onnx").write_bytes(b"graph")
    (directory / "chat_template.jinja").write_text(TEMPLATE)
    write_manifest(directory, task, control, guard_format)
    return open_bundle(directory)


def write_manifest(directory: Path, task: Task, control: dict[str, int], guard_format: GuardFormat = FORMAT) -> None:
    """Record every file of ``directory`` in a manifest."""
    files = {
        path.name: FileRecord(hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_size)
        for path in directory.iterdir()
        if path.name != "manifest.json"
    }
    manifest = Manifest(
        name=f"tiny-{task}",
        task=task,
        tools={},
        source=Source("huggingface", "tiny", None, {}, None),
        shape=TINY_SHAPE,
        quantization=Quantization("none", "float32", "float32", "float32", "float32", "none"),
        graph=Graph("model.onnx", "gqa", None),
        tokens=Tokens(bos=None, stop=(control["<|im_end|>"],), control=control),
        chat_template="chat_template.jinja",
        generation=GenerationDefaults(0.6, 0.9, 0),
        guard=guard_format if task == "guard" else None,
        parity=None,
        files=files,
    )
    (directory / "manifest.json").write_bytes(manifest.to_json())
