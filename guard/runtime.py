"""From a bundle directory to a model that answers: verify, load, warm up."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np

from guard.bundle import Bundle, BundleKey, open_bundle
from guard.bundle.external_data import check_external_data
from guard.bundle.manifest import Probe
from guard.classifier import Classifier
from guard.engine.engine import Engine
from guard.engine.kv_cache import KvCache
from guard.engine.memory import available_memory, give_back
from guard.engine.runner import Runner, load_runner
from guard.engine.settings import EngineSettings
from guard.errors import BundleError, ModelOutputError
from guard.generator import Generator
from guard.tokenizer import Tokenizer


def load_guard(directory: str | os.PathLike[str], settings: EngineSettings, key: BundleKey | None = None) -> Classifier:
    """Open, verify and load a guard bundle, signed with ``key`` if one is given.

    Raises BundleError naming what is wrong with it.
    """
    bundle, runner, tokenizer = _load(directory, "guard", settings, key)
    engine = Engine(runner, settings, bundle.manifest.name)
    classifier = Classifier(bundle, runner, engine, tokenizer=tokenizer)
    give_back()  # half of what the parts took while they were read
    return classifier


def load_instruct(
    directory: str | os.PathLike[str], settings: EngineSettings, key: BundleKey | None = None
) -> Generator:
    """Open, verify and load an instruct bundle, signed with ``key`` if one is given.

    Raises BundleError naming what is wrong with it.
    """
    bundle, runner, tokenizer = _load(directory, "instruct", settings, key)
    generator = Generator(bundle, runner, Engine(runner, settings, bundle.manifest.name), tokenizer)
    give_back()
    return generator


def _load(
    directory: str | os.PathLike[str], task: str, settings: EngineSettings, key: BundleKey | None
) -> tuple[Bundle, Runner, Tokenizer]:
    bundle = open_bundle(directory, key)
    if bundle.manifest.task != task:
        raise BundleError(f"{directory}: a bundle for {bundle.manifest.task}, expected {task}")
    check_external_data(bundle.graph_path, bundle.manifest.files)
    with ThreadPoolExecutor(1) as pool:  # ONNX Runtime holds no interpreter lock while it reads the graph
        tokenizer = pool.submit(Tokenizer, bundle.tokenizer_path, bundle.manifest.tokens.control)
        runner = load_runner(bundle, settings.threads)
        _warm_up(runner)
        if bundle.manifest.parity is not None:
            check_probe(runner, bundle.manifest.parity.probe)
        _drop_originals(bundle)
        return bundle, runner, tokenizer.result()


def _drop_originals(bundle: Bundle) -> None:
    """Where memory is short, forget the pages of weights that were only read to compare them with their packed copies:
    the system would rather keep them, which were read twice, than the copies, which every request reads.

    A page that is mapped, such as those of the embedding table, stays. Elsewhere all stay, for the next load.
    """
    manifest = bundle.manifest
    size = sum(record.bytes for record in manifest.files.values())
    if manifest.packed is None or available_memory() > 2 * size:
        return
    for name, record in manifest.files.items():
        with suppress(OSError), (bundle.directory / name).open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, max(0, record.bytes - manifest.packed.bytes), os.POSIX_FADV_DONTNEED)


def check_probe(runner: Runner, probe: Probe) -> None:
    """Compute a bundle's known answer; raises BundleError when the graph gives something else on this machine."""
    if (
        not probe.token_ids
        or len(probe.rows) != len(probe.logits)
        or max(probe.token_ids) >= runner.shape.vocab_size
        or max(probe.rows, default=len(runner.rows)) >= len(runner.rows)
    ):
        raise BundleError("manifest.parity.probe: does not fit the model")
    cache = KvCache(runner.shape, len(probe.token_ids))
    logits = runner.forward(cache, probe.token_ids, [len(probe.token_ids) - 1])[0]
    difference = float(np.abs(logits[list(probe.rows)] - np.array(probe.logits, np.float32)).max())
    if not difference <= probe.tolerance:  # also true for NaN
        raise BundleError(
            f"the graph gives other answers here than where it was exported: logits differ by {difference:.3g}, at most"
            f" {probe.tolerance:g} is expected (for int8 on a processor without VNNI: export with --quantization int4)"
        )


def _warm_up(runner: Runner) -> None:
    """One small prefill and one decode step: the first request pays for no lazy allocation, and a broken graph shows
    now.
    """
    cache = KvCache(runner.shape, 16)
    for tokens in ([0] * 8, [0]):
        try:
            logits = runner.forward(cache, tokens, [len(tokens) - 1])
        except Exception as error:  # onnxruntime raises bare exceptions of its own for each kind of failure
            raise BundleError("the graph loads but does not run") from error
        if logits.shape != (1, len(runner.rows)):
            raise ModelOutputError("the graph's logits do not have one row a head token")
