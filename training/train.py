"""Train the embedded guard: ``python -m training.train --checkpoint MODEL --data ROWS --out DIR`` (training/README.md).

Needs the ``reference`` extra (torch). Workers share the parameters and update them in turn from gradients that may be
one step old (Hogwild, arXiv:1106.5730): two single-threaded workers use two busy cores better than one worker with
two threads, which wait for each other at every operation. So a run is not reproducible bit for bit; its figures are,
within noise.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.multiprocessing

from export.checkpoint import open_checkpoint
from export.checkpoint.adapter import HEAD_FILE, LORA_FILE
from export.checkpoint.files import FileReader
from export.checkpoint.safetensors import SafetensorsFile
from guard.conversation import Target
from training.adapter_files import write_guard, write_lora
from training.data import Row, capped, hand_written_rows, read_rows, refusal_rows
from training.llama import Llama, Lora, features
from training.optimizer import SharedAdam
from training.prompts import Example, Prompts
from training.recipe import FORMAT, Recipe

#: Rows that are sorted by length together, so that a batch has little padding.
_POOL = 1024


class Trainer:
    """The model, what is trained of it, and the rows."""

    def __init__(self, checkpoint_path: str, rows: Sequence[Row], recipe: Recipe) -> None:
        torch.manual_seed(recipe.seed)
        checkpoint = open_checkpoint(checkpoint_path)
        self.recipe, self.rows = recipe, rows
        self.prompts = Prompts.of_checkpoint(FORMAT, checkpoint)
        self.prefixes = {target: self.prompts.prefix(target) for target in Target}
        self.model = Llama(checkpoint)
        self.lora = Lora(checkpoint.spec, recipe.first_layer, recipe.rank, recipe.alpha)
        # The label words' own rows: the untrained head already leans the right way.
        self.head = self.model.embedding[list(self.prompts.head_token_ids)].float().requires_grad_()
        self.adam = SharedAdam([*self.lora.parameters, self.head], recipe)

    def work(self, worker: int) -> None:
        """Update the shared parameters until the time is over."""
        torch.set_num_threads(1)
        rng = random.Random(self.recipe.seed + worker)
        mine = self.rows[worker :: self.recipe.workers]
        start = 0
        while True:
            pool = [mine[(start + offset) % len(mine)] for offset in range(min(_POOL, len(mine)))]
            start += len(pool)
            for batch in self._batches(pool, rng):
                if self.adam.finished():
                    return
                loss, gradients = self._gradients(batch)
                tokens = sum(len(example.token_ids) for example in batch)
                self.adam.update(gradients, rows=len(batch), tokens=tokens, loss=loss)

    def features(self, batch: Sequence[Example], first_aim_only: bool) -> Any:
        """Normed features float32 [aims, hidden] of examples for one target, without gradients."""
        if first_aim_only:
            batch = [replace(example, aims=example.aims[:1]) for example in batch]
        return self._run(batch, gradients=False)

    def resume(self, directory: Path) -> None:
        """Start from an adapter that this command wrote; raises CheckpointError when it does not fit the recipe."""
        reader = FileReader(directory)
        tensors = SafetensorsFile(reader.open(LORA_FILE))
        for name, pair in self.lora.pairs.items():
            for part, parameter in zip("AB", pair, strict=True):
                parameter.data.copy_(torch.from_numpy(tensors.read(f"base_model.model.{name}.lora_{part}.weight")))
        self.head.data.copy_(torch.from_numpy(SafetensorsFile(reader.open(HEAD_FILE)).read("weight")))

    def save(self, directory: Path, base: str) -> None:
        """Write the adapter as it is now."""
        pairs = {name: (a.detach().numpy(), b.detach().numpy()) for name, (a, b) in self.lora.pairs.items()}
        write_lora(directory, pairs, self.lora.rank, self.lora.alpha, base)
        write_guard(directory, FORMAT, self.prompts.head_token_ids, self.head.detach().numpy())

    def _batches(self, pool: Sequence[Row], rng: random.Random) -> list[list[Example]]:
        recipe = self.recipe
        examples = []
        for row in pool:
            tokens = recipe.long_tokens if rng.random() < recipe.long_share else recipe.short_tokens
            examples.append(self.prompts.example(row, tokens, recipe, rng))
        batches = [batch for target in Target for batch in self._of_one_length(examples, target)]
        rng.shuffle(batches)
        return batches

    def _of_one_length(self, examples: Sequence[Example], target: Target) -> Iterator[list[Example]]:
        batch: list[Example] = []
        chosen = [example for example in examples if example.role is target]
        for example in sorted(chosen, key=lambda example: len(example.token_ids)):
            width = len(example.token_ids) - len(self.prefixes[target])
            if batch and width * (len(batch) + 1) > self.recipe.batch_tokens:
                yield batch
                batch = []
            batch.append(example)
        if batch:
            yield batch

    def _gradients(self, batch: Sequence[Example]) -> tuple[float, Any]:
        """Cross entropy over the head's rows, summed over each example's aims, averaged over the batch."""
        h = self._run(batch, gradients=True)
        aims = [aim for example in batch for aim in example.aims]
        targets = torch.from_numpy(np.stack([aim.target for aim in aims]))
        weights = torch.tensor([aim.weight for aim in aims])
        losses = -(targets * torch.log_softmax(h @ self.head.T, -1)).sum(-1)
        loss = (losses * weights).sum() / len(batch)
        return float(loss.detach()), torch.autograd.grad(loss, self.adam.parameters)

    def _run(self, batch: Sequence[Example], gradients: bool) -> Any:
        return features(
            self.model,
            self.lora,
            self.recipe.first_layer,
            self.prefixes[batch[0].role],
            [example.token_ids for example in batch],
            [[aim.position for aim in example.aims] for example in batch],
            gradients,
        )


def training_rows(files: Sequence[Path], recipe: Recipe) -> list[Row]:
    """The users' rows under the recipe's caps, our own, and refusals, shuffled."""
    rng = random.Random(recipe.seed)
    given = [row for path in files for row in read_rows(path)]
    rng.shuffle(given)
    rows = capped(given, recipe.source_caps) + hand_written_rows() * recipe.hand_written_repeats
    rows += refusal_rows(given, recipe.refusals, rng)
    rng.shuffle(rows)
    return rows


def main() -> None:
    """Read the arguments, train, write the adapter."""
    recipe = Recipe()
    parser = argparse.ArgumentParser(description="Train the embedded guard's adapter.")
    parser.add_argument("--checkpoint", required=True, help="SmolLM2-135M-Instruct: a GGUF file or a directory")
    parser.add_argument("--data", type=Path, required=True, action="append", help="labelled rows, .jsonl or .jsonl.gz")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the adapter's directory")
    parser.add_argument("--minutes", type=float, default=recipe.minutes, help="wall-clock time (default %(default)s)")
    parser.add_argument("--workers", type=int, default=recipe.workers, help="processes (default %(default)s)")
    parser.add_argument("--resume", type=Path, metavar="DIR", help="start from this adapter")
    parser.add_argument("--learning-rate", type=float, default=recipe.learning_rate, help="(default %(default)s)")
    parser.add_argument("--seed", type=int, default=recipe.seed, help="of rows and weights (default %(default)s)")
    parser.add_argument(
        "--hand-written-repeats",
        type=int,
        default=recipe.hand_written_repeats,
        help="how often a round has the project's own texts (default %(default)s)",
    )
    args = parser.parse_args()
    recipe = replace(
        recipe,
        minutes=args.minutes,
        workers=args.workers,
        learning_rate=args.learning_rate,
        seed=args.seed,
        hand_written_repeats=args.hand_written_repeats,
    )
    trainer = Trainer(args.checkpoint, training_rows(args.data, recipe), recipe)
    if args.resume is not None:
        trainer.resume(args.resume)
    trainer.adam.start()
    context = torch.multiprocessing.get_context("fork")  # the frozen weights are shared, not copied
    workers = [context.Process(target=trainer.work, args=(index,)) for index in range(recipe.workers)]
    for process in workers:
        process.start()
    while any(process.is_alive() for process in workers):
        time.sleep(10)
        print(trainer.adam.progress(), flush=True)
    if any(process.exitcode for process in workers):
        raise SystemExit("a worker failed; nothing was written")
    trainer.save(args.out, Path(args.checkpoint).stem)


if __name__ == "__main__":
    main()
