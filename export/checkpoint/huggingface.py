"""A Hugging Face checkpoint directory (config.json, safetensors, tokenizer.json) as a verified Checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from export.checkpoint.files import FileReader
from export.checkpoint.model import Checkpoint
from export.checkpoint.safetensors import open_safetensors
from export.checkpoint.tensors import VerifiedTensors
from export.checkpoint.tokenizer import CheckedTokenizer, check_tokenizer
from export.spec import ModelSpec
from guard.bundle.manifest import GenerationDefaults, Source, Tokens
from guard.errors import CheckpointError, UnsupportedError

CONFIG_FILE: Final = "config.json"
GENERATION_FILE: Final = "generation_config.json"
TOKENIZER_FILE: Final = "tokenizer.json"
TOKENIZER_CONFIG_FILE: Final = "tokenizer_config.json"
SPECIAL_TOKENS_FILE: Final = "special_tokens_map.json"
TEMPLATE_FILE: Final = "chat_template.jinja"


def open_directory(directory: Path, *, name: str | None = None, revision: str | None = None) -> Checkpoint:
    """Read and verify the checkpoint in ``directory``; tensors are read later, slice by slice.

    ``name`` and ``revision`` go into ``Checkpoint.source`` (default: the directory's own name, no revision). Raises
    CheckpointError naming the broken file, field or tensor, and UnsupportedError naming a feature.
    """
    directory = directory.resolve()
    reader = FileReader(directory)
    config = reader.read_json(CONFIG_FILE)
    spec = ModelSpec.from_config(config, CONFIG_FILE)  # first, so that an unsupported model is refused before any work
    generation_config = reader.read_optional_json(GENERATION_FILE)
    tokenizer_config = reader.read_optional_json(TOKENIZER_CONFIG_FILE)
    special_tokens = reader.read_optional_json(SPECIAL_TOKENS_FILE)
    tokenizer = _tokenizer(reader, spec)
    tokens = Tokens(
        bos=_bos(config, tokenizer_config, special_tokens, tokenizer, spec),
        stop=_stop(config, generation_config, tokenizer_config, special_tokens, tokenizer, spec),
        control=tokenizer.control,
    )
    template = _chat_template(reader, tokenizer_config)
    generation = _generation_defaults(generation_config)
    tensors = VerifiedTensors(open_safetensors(reader), spec, directory.name)
    return Checkpoint(
        spec=spec,
        tensors=tensors,
        tokenizer_json=tokenizer.json,
        tokens=tokens,
        chat_template=template,
        generation=generation,
        guard_format=None,
        source=Source(
            kind="huggingface",
            name=name or directory.name,
            revision=revision,
            files=dict(sorted(reader.hashes.items())),
            adapter=None,
        ),
    )


def _tokenizer(reader: FileReader, spec: ModelSpec) -> CheckedTokenizer:
    if not reader.exists(TOKENIZER_FILE) and reader.exists("tokenizer.model"):
        raise UnsupportedError("tokenizer.model: only tokenizer.json is read; convert it with transformers")
    return check_tokenizer(reader.read_bytes(TOKENIZER_FILE), spec.vocab_size, TOKENIZER_FILE)


def _bos(
    config: dict[str, Any],
    tokenizer_config: dict[str, Any],
    special_tokens: dict[str, Any],
    tokenizer: CheckedTokenizer,
    spec: ModelSpec,
) -> int | None:
    """The tokenizer's ``bos_token`` is what templates render; the model's ``bos_token_id`` only fills its absence."""
    for values, where in ((tokenizer_config, TOKENIZER_CONFIG_FILE), (special_tokens, SPECIAL_TOKENS_FILE)):
        if "bos_token" in values:
            return _special_id(values["bos_token"], tokenizer, f"{where}: bos_token")
    ids = _token_ids(config.get("bos_token_id"), spec, f"{CONFIG_FILE}: bos_token_id")
    return ids[0] if ids else None


def _stop(
    config: dict[str, Any],
    generation_config: dict[str, Any],
    tokenizer_config: dict[str, Any],
    special_tokens: dict[str, Any],
    tokenizer: CheckedTokenizer,
    spec: ModelSpec,
) -> tuple[int, ...]:
    """Ids that end a generation: both configs' ``eos_token_id``; the tokenizer's ``eos_token`` when neither has one."""
    ids = {
        *_token_ids(generation_config.get("eos_token_id"), spec, f"{GENERATION_FILE}: eos_token_id"),
        *_token_ids(config.get("eos_token_id"), spec, f"{CONFIG_FILE}: eos_token_id"),
    }
    if not ids:
        eos = tokenizer_config.get("eos_token", special_tokens.get("eos_token"))
        found = _special_id(eos, tokenizer, f"{TOKENIZER_CONFIG_FILE}: eos_token")
        ids = set() if found is None else {found}
    if not ids:
        raise CheckpointError(f"{CONFIG_FILE}: eos_token_id: missing, and no other file names an end-of-text token")
    return tuple(sorted(ids))


def _special_id(value: Any, tokenizer: CheckedTokenizer, where: str) -> int | None:
    """The id of a token written as text or as an added-token object; None stays None."""
    text = value.get("content") if isinstance(value, dict) else value
    if value is None:
        return None
    if not isinstance(text, str) or text not in tokenizer.added:
        raise CheckpointError(f"{where}: not an added token of {TOKENIZER_FILE}")
    return tokenizer.added[text]


def _token_ids(value: Any, spec: ModelSpec, where: str) -> tuple[int, ...]:
    ids = [] if value is None else value if isinstance(value, list) else [value]
    for token_id in ids:
        if type(token_id) is not int or not 0 <= token_id < spec.vocab_size:
            raise CheckpointError(f"{where}: expected token ids below {spec.vocab_size}")
    return tuple(ids)


def _chat_template(reader: FileReader, tokenizer_config: dict[str, Any]) -> str | None:
    """``chat_template.jinja``, else the tokenizer config's template (one text, or the one named "default")."""
    if reader.exists(TEMPLATE_FILE):
        try:
            return reader.read_bytes(TEMPLATE_FILE).decode("utf-8")
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{TEMPLATE_FILE}: not UTF-8") from error
    value = tokenizer_config.get("chat_template")
    if value is None or isinstance(value, str):
        return value
    where = f"{TOKENIZER_CONFIG_FILE}: chat_template"
    named: dict[str, str] = {}
    for item in value if isinstance(value, list) else [value]:
        name, template = (item.get("name"), item.get("template")) if isinstance(item, dict) else (None, None)
        if not isinstance(name, str) or not isinstance(template, str) or name in named:
            raise CheckpointError(f"{where}: expected a text or a list of named templates")
        named[name] = template
    if "default" not in named:
        raise UnsupportedError(f"{where}: none of the named templates is called 'default'")
    return named["default"]


def _generation_defaults(config: dict[str, Any]) -> GenerationDefaults | None:
    """Sampling defaults; ``do_sample: false`` means greedy. A setting that is not named does not restrict sampling."""
    if all(config.get(name) is None for name in ("do_sample", "temperature", "top_p", "top_k")):
        return None
    sample = config.get("do_sample")
    if sample not in (None, True, False):
        raise CheckpointError(f"{GENERATION_FILE}: do_sample: expected a boolean")
    temperature = _setting(config, "temperature", default=1.0, low=0.0, high=100.0)
    top_p = _setting(config, "top_p", default=1.0, low=0.0, high=1.0)
    top_k = _setting(config, "top_k", default=0, low=0, high=1 << 20)
    if sample is False:
        temperature, top_p, top_k = 0.0, 1.0, 0.0
    return GenerationDefaults(temperature=temperature, top_p=top_p, top_k=int(top_k))


def _setting(config: dict[str, Any], name: str, *, default: float, low: float, high: float) -> float:
    value = config.get(name)
    value = default if value is None else value
    if type(value) not in (int, float) or not low <= value <= high:
        raise CheckpointError(f"{GENERATION_FILE}: {name}: must be a number between {low} and {high}")
    return float(value)
