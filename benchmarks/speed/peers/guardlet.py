"""Our own engine, in process, through the API that the server uses: from text to verdict, from text to text."""

from __future__ import annotations

import itertools
import time
from dataclasses import replace

from benchmarks.speed.engine import Classify, Decode, Engine, Prefill
from guard.classifier import Classifier, ClassifyTask
from guard.conversation import Conversation, Message, Role, Target
from guard.engine.memory import share_one_heap
from guard.engine.sampler import SamplingParams
from guard.engine.settings import EngineSettings
from guard.generation import GenerateTask
from guard.generator import Generator
from guard.policy import CustomCategory, Policy
from guard.runtime import load_guard, load_instruct

#: Random weights find texts unsafe, and the first window that is ends the reading of a long one.
_NEVER = 1.0


def load(task: str, weights: str, threads: int) -> Engine:
    """A bundle, with the settings that ``guard serve`` has, those of the C library included."""
    share_one_heap()
    settings = EngineSettings(threads=threads)
    return _Guard(load_guard(weights, settings)) if task == "guard" else _Instruct(load_instruct(weights, settings))


class _Guard:
    def __init__(self, classifier: Classifier) -> None:
        self._classifier = classifier
        self._fresh = itertools.count()

    def classify(self, work: Classify) -> float:
        """With all its category scores, which no other engine here reads; there is no answer to generate."""
        policy = Policy(threshold=_NEVER)
        if work.warm:
            self._judge("Hello.", policy)
        else:  # no prompt had this category before, so no part of this one is known beyond its first lines
            policy = replace(policy, custom_categories=(CustomCategory("S1", f"Violent Crimes {next(self._fresh)}"),))
        began = time.perf_counter()
        self._judge(work.text, policy)
        return time.perf_counter() - began

    def _judge(self, text: str, policy: Policy) -> None:
        conversation = Conversation((Message(Role.USER, text),))
        self._classifier.classify(ClassifyTask(conversation, Target.PROMPT, policy))

    def prefill(self, work: Prefill) -> float:
        raise NotImplementedError

    def decode(self, work: Decode) -> float:
        raise NotImplementedError


class _Instruct:
    def __init__(self, generator: Generator) -> None:
        self._generator = generator
        self._fresh = itertools.count()

    def classify(self, work: Classify) -> float:
        raise NotImplementedError

    def prefill(self, work: Prefill) -> float:
        prompt = self._generator.tokenizer.decode(work.token_ids)
        task = GenerateTask(prompt=prompt, max_tokens=1, cache_salt=str(next(self._fresh)))
        began = time.perf_counter()
        done = self._generator.generate(task)
        seconds = time.perf_counter() - began
        if (done.prompt_tokens, done.cached_tokens) != (len(work.token_ids), 0):
            raise ValueError(f"{done.prompt_tokens} tokens were prefilled, {done.cached_tokens} of them cached")
        return seconds

    def decode(self, work: Decode) -> float:
        """Of one task with so many choices: its prompt is computed once, then all decode together."""
        prompt = self._generator.tokenizer.decode(work.prompt)
        sampling = SamplingParams(temperature=0.0)
        task = GenerateTask(prompt=prompt, max_tokens=work.steps + 1, choices=work.streams, sampling=sampling)
        done = self._generator.generate(task)
        if done.completion_tokens != work.streams * (work.steps + 1):
            raise ValueError("the text ended early")
        return done.model_s - (done.first_token_s - done.queue_s)
