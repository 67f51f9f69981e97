# SPDX-License-Identifier: Apache-2.0
"""Training and evaluation loop, checkpoints, and errors for users."""

from person_search.engine.checkpoint import (
    AtomicCheckpointer,
    CheckpointWriteError,
    IncompatibleCheckpointError,
)
from person_search.engine.data_checks import (
    DatasetError,
    check_dataset_names,
    check_test_sets,
    resolve_num_pids,
)
from person_search.engine.divergence import TrainingDivergedError
from person_search.engine.ema import AveragedWeights, EMAHook, load_average
from person_search.engine.errors import friendly_errors
from person_search.engine.hooks import BestModelCheckpointer, ResumableCheckpointer
from person_search.engine.launch import launch, launch_program
from person_search.engine.optimizer import build_optimizer
from person_search.engine.rng import isolated_rng
from person_search.engine.run_folder import (
    evaluation_config,
    keys_without_weights,
    setup_run,
    write_config,
)
from person_search.engine.tracking import forget_runs
from person_search.engine.train_loader import build_train_loader
from person_search.engine.trainer import PersonSearchTrainer

__all__ = [
    "AtomicCheckpointer",
    "AveragedWeights",
    "BestModelCheckpointer",
    "CheckpointWriteError",
    "DatasetError",
    "EMAHook",
    "IncompatibleCheckpointError",
    "PersonSearchTrainer",
    "ResumableCheckpointer",
    "TrainingDivergedError",
    "build_optimizer",
    "build_train_loader",
    "check_dataset_names",
    "check_test_sets",
    "evaluation_config",
    "forget_runs",
    "friendly_errors",
    "isolated_rng",
    "keys_without_weights",
    "launch",
    "launch_program",
    "load_average",
    "resolve_num_pids",
    "setup_run",
    "write_config",
]
