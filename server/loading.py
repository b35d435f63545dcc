"""What a guard model is asked before it serves: whether it can judge every policy."""

from __future__ import annotations

from pathlib import Path

from guard.bundle.manifest import Task
from guard.cache import VerdictCache
from guard.classifier import Classifier
from guard.engine.settings import EngineSettings
from guard.errors import BundleError
from guard.policies import PolicyBook
from server.errors import SettingsError
from server.policies import check_policies
from server.registry import Loader, Model
from server.settings import Settings


def prepared(loader: Loader, policies: PolicyBook, options: Settings) -> Loader:
    """``loader``, whose guard models can judge every policy, and remember their verdicts. The screen is not asked about
    those that it cannot judge.
    """

    def load(directory: Path, task: Task, settings: EngineSettings) -> Model:
        model = loader(directory, task, settings)
        if isinstance(model, Classifier):
            policy = policies.policy_for(None).policy
            try:
                if directory != options.screen:
                    check_policies(policies, model.check_policy)
                    if policy.excluded_categories or policy.custom_categories:  # its prompts begin unlike Policy()'s
                        model.warm_up(policy)
            except (SettingsError, BundleError):
                model.close()
                raise
            model.cache = VerdictCache(options.cache, model.bundle.digest)
        return model

    return load
