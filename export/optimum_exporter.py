"""The reference exporter: Hugging Face optimum's own ONNX export of the same checkpoint (``concat`` interface).

The only module of ``export`` that needs torch, transformers and optimum. It exports a temporary Hugging Face copy of
the checkpoint in float32, so that GGUF files and merged adapters take the same road.
"""

from __future__ import annotations

import json
import math
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path

from export.checkpoint.model import Checkpoint, TensorSource
from export.graph.writer import DATA_FILE, MODEL_FILE
from guard.errors import UnsupportedError


def export_graph(checkpoint: Checkpoint, directory: Path) -> None:
    """Write optimum's ``model.onnx`` and ``model.onnx.data`` into ``directory``.

    Raises UnsupportedError when the ``reference`` extra is not installed.
    """
    try:
        import onnx
        from optimum.exporters.onnx import main_export
    except ImportError as error:
        raise UnsupportedError("exporter optimum: needs more packages: pip install 'guardlet[reference]'") from error
    with tempfile.TemporaryDirectory(dir=directory, prefix=".optimum-") as scratch:
        source, exported = Path(scratch) / "checkpoint", Path(scratch) / "exported"
        source.mkdir()
        write_hugging_face(checkpoint, source)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the tracer's remarks on transformers' own code
            main_export(
                str(source),
                exported,
                task="text-generation-with-past",
                framework="pt",
                local_files_only=True,
                do_validation=False,  # export.parity compares the packaged graph
                no_post_process=True,  # it serializes the whole model at once, which fails above 2 GB
            )
        model = onnx.load(exported / "model.onnx")
        onnx.save_model(
            model,
            directory / MODEL_FILE,
            save_as_external_data=True,
            all_tensors_to_one_file=True,
            location=DATA_FILE,
            size_threshold=1024,
            convert_attribute=False,
        )


def write_hugging_face(checkpoint: Checkpoint, directory: Path) -> None:
    """Write ``checkpoint`` as a float32 Hugging Face checkpoint: config.json, model.safetensors, tokenizer.json."""
    spec, tokens = checkpoint.spec, checkpoint.tokens
    special = {"bos_token_id": tokens.bos, "eos_token_id": list(tokens.stop), "torch_dtype": "float32"}
    config = spec.to_config() | special
    (directory / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    (directory / "tokenizer.json").write_bytes(checkpoint.tokenizer_json)
    (directory / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}', encoding="utf-8")
    _write_safetensors(directory / "model.safetensors", checkpoint.tensors, spec.expected_tensors())


def _write_safetensors(path: Path, tensors: TensorSource, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Format: https://github.com/huggingface/safetensors#format."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in shapes:
            file.write(tensors.read(name).astype("<f4", copy=False).tobytes())
