"""The settings with which a run may resume, and those that need another run."""

import dataclasses
from typing import Any

from keras_attention.pipeline.config import RunConfig
from keras_attention.pipeline.folder import RunFolder
from keras_attention.pipeline.recipe import adopt_choices
from keras_attention.pipeline.setting_checks import FILES

LEARNING_RATE = ("learning_rate_scale", "warmup_steps", "learning_rate_decay", "total_steps")
# Settings on which the weights, the optimizer and the batches of a run do not depend. `RunFolder.check_texts` checks
# that files at other paths hold the same text.
CHANGEABLE = (
    *FILES,
    *LEARNING_RATE,
    "evaluate_every",
    "patience",
    "checkpoint_minutes",
    "keep_checkpoints",
    "score_sentences",
)


def check_changes(run: RunFolder, config: RunConfig) -> RunConfig:
    """Checks a config and its texts against those of a run with checkpoints, and returns it with the run's choices."""
    if not run.trained:
        return config
    config = check_settings(run, config)
    run.check_texts(config)
    return config


def check_settings(run: RunFolder, config: RunConfig) -> RunConfig:
    """Checks that a run with checkpoints can resume with a config, and returns it with the run's choices."""
    run_config = run.config
    config = adopt_choices(config, run_config)
    differing = [
        f"{name}: {old!r} in the run, {new!r} in the new config"
        for name, (old, new) in changed_settings(run_config, config).items()
        if name not in CHANGEABLE
    ]
    if differing:
        raise ValueError(
            f"{run.path} holds a run with another config: resume it without these settings, or train in another "
            f"folder, there with `--from {run.path}` to begin with its weights. Received: {'; '.join(differing)}"
        )
    return config


def changed_settings(old: RunConfig, new: RunConfig) -> dict[str, tuple[Any, Any]]:
    """The values of the settings that differ, before and after."""
    before, after = dataclasses.asdict(old), dataclasses.asdict(new)
    return {name: (before[name], after[name]) for name in before if before[name] != after[name]}
