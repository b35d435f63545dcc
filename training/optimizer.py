"""AdamW without weight decay (arXiv:1412.6980) over shared parameters, safe to update from several processes."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import torch
import torch.multiprocessing

from training.recipe import Recipe

_EPSILON = 1e-8


class SharedAdam:
    """The learning rate warms up by steps and then falls linearly to zero over the recipe's minutes."""

    def __init__(self, parameters: Sequence[Any], recipe: Recipe) -> None:
        self.parameters = list(parameters)
        self._recipe = recipe
        self._values = [parameter.data.share_memory_() for parameter in parameters]
        self._mean = [torch.zeros_like(value).share_memory_() for value in self._values]
        self._square = [torch.zeros_like(value).share_memory_() for value in self._values]
        self._totals = torch.zeros(4, dtype=torch.float64).share_memory_()  # steps, rows, tokens, loss summed over rows
        self._lock = torch.multiprocessing.get_context("fork").Lock()
        self._started = time.monotonic()

    def start(self) -> None:
        """The minutes count from now."""
        self._started = time.monotonic()

    def finished(self) -> bool:
        """Whether the time is over."""
        return self._elapsed() >= 1

    def update(self, gradients: Sequence[Any], *, rows: int, tokens: int, loss: float) -> None:
        """One step with the gradients clipped to the recipe's norm."""
        recipe = self._recipe
        norm = math.sqrt(sum(float(gradient.pow(2).sum()) for gradient in gradients))
        clipped = [gradient * min(1.0, recipe.gradient_norm / (norm + 1e-6)) for gradient in gradients]
        with self._lock:
            self._totals += torch.tensor([1, rows, tokens, loss * rows], dtype=torch.float64)
            step = int(self._totals[0])
            rate = recipe.learning_rate * min(1.0, step / recipe.warmup_steps) * max(0.0, 1 - self._elapsed())
            torch._foreach_mul_(self._mean, recipe.beta1)
            torch._foreach_add_(self._mean, clipped, alpha=1 - recipe.beta1)
            torch._foreach_mul_(self._square, recipe.beta2)
            torch._foreach_addcmul_(self._square, clipped, clipped, 1 - recipe.beta2)
            root = torch._foreach_sqrt(self._square)
            torch._foreach_div_(root, math.sqrt(1 - recipe.beta2**step))
            torch._foreach_add_(root, _EPSILON)
            torch._foreach_addcdiv_(self._values, self._mean, root, -rate / (1 - recipe.beta1**step))

    def progress(self) -> str:
        """One line for a person."""
        steps, rows, tokens, loss = self._totals.tolist()
        minutes = (time.monotonic() - self._started) / 60
        return (
            f"{minutes:.1f} min: {steps:.0f} steps, {rows:.0f} rows, {tokens / minutes / 60:.0f} tokens/s, "
            f"mean loss {loss / max(1.0, rows):.3f}"
        )

    def _elapsed(self) -> float:
        return (time.monotonic() - self._started) / (60 * self._recipe.minutes)
