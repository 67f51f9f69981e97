# SPDX-License-Identifier: Apache-2.0
"""What remains of a training besides weights: its record, experiment trackers, drawn evaluations.

``OUTPUT_DIR/run.json`` says how each start of a training came about. Weights & Biases and MLflow
get the scalars that go to ``metrics.json``, and the drawn evaluations that go to TensorBoard.
"""

import datetime
import hashlib
import importlib.util
import json
import logging
import os
import shlex
import subprocess
import sys
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.events import EventWriter, get_event_storage

from person_search.engine.checkpoint import CheckpointWriteError, write_safely
from person_search.evaluation import PersonSearchEvaluator
from person_search.utils.collect_env import describe_system

RUN_FILE = "run.json"
_SMOOTHING = 20
_ROOT = Path(__file__).resolve().parents[2]
logger = logging.getLogger(__name__)


# ---- record of the run -------------------------------------------------------------------------
def record_start(cfg: CfgNode, iteration: int) -> None:
    """Adds a start of a training to ``OUTPUT_DIR/run.json``.

    Args:
        cfg: Config of the training.
        iteration: First iteration.
    """
    path = Path(cfg.OUTPUT_DIR, RUN_FILE)
    try:
        starts = [*json.loads(path.read_text("utf-8"))["starts"]]
    except (OSError, ValueError, KeyError, TypeError):  # absent, or not ours
        starts = []
    starts.append(
        {
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            "iteration": iteration,
            "processes": comm.get_world_size(),
            "config": hashlib.sha256(cfg.dump().encode()).hexdigest(),
            "git": git_state(),
            "data": {name: fingerprint(DatasetCatalog.get(name)) for name in cfg.DATASETS.TRAIN},
            "environment": dict(describe_system()),
        }
    )
    try:
        write_safely(str(path), (json.dumps({"starts": starts}, indent=2) + "\n").encode())
    except CheckpointWriteError as e:  # a record is no reason not to train
        logger.error("%s", e)


def git_state(root: Path = _ROOT) -> dict[str, Any] | None:
    """Returns commit and number of changed files of the checkout; None for an installed package."""
    if not (root / ".git").exists():
        return None
    git = ["git", "-C", str(root)]
    try:
        commit, changes = (
            subprocess.run([*git, *words], capture_output=True, text=True, timeout=10, check=True)
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "-uno"])
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit.stdout.strip(), "changed_files": len(changes.stdout.splitlines())}


def fingerprint(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns the number of images and boxes of a data set, and a hash of its annotations.

    Args:
        records: Records of the data set. Of a file, only its name counts, not its folder.
    """
    digest, boxes = hashlib.sha256(), 0
    for record in records:
        persons = [
            ([round(float(v), 2) for v in x["bbox"]], int(x["person_id"]))
            for x in record["annotations"]
        ]
        boxes += len(persons)
        digest.update(json.dumps([os.path.basename(record["file_name"]), persons]).encode())
    return {"images": len(records), "boxes": boxes, "sha256": digest.hexdigest()[:16]}


# ---- trackers ----------------------------------------------------------------------------------
class Tracker(EventWriter):
    """Writes scalars and images to a service. Its failure never ends a training.

    Args:
        cfg: Config of the training.
    """

    name = ""

    def __init__(self, cfg: CfgNode) -> None:
        self._last = -1
        self._last_iteration = cfg.SOLVER.MAX_ITER - 1
        self._failed = False

    @abstractmethod
    def log(self, values: dict[str, float], iteration: int) -> None:
        """Sends the scalars of an iteration."""

    @abstractmethod
    def log_image(self, name: str, image: np.ndarray, iteration: int) -> None:
        """Sends an RGB image (H, W, 3) uint8."""

    @abstractmethod
    def finish(self, *, completed: bool) -> None:
        """Ends the run at the service, as failed unless the training has reached its end."""

    def write(self) -> None:
        """Sends the scalars that are new since the last call."""
        by_iteration: dict[int, dict[str, float]] = {}
        latest = get_event_storage().latest_with_smoothing_hint(_SMOOTHING)
        for name, (value, iteration) in latest.items():
            if iteration > self._last:
                by_iteration.setdefault(iteration, {})[name] = float(value)
        for iteration, values in sorted(by_iteration.items()):
            self._try(self.log, values, iteration)
            self._last = iteration

    def write_image(self, name: str, image: np.ndarray, iteration: int) -> None:
        """Sends an image as :meth:`log_image` does, unless the service has failed."""
        self._try(self.log_image, name, image, iteration)

    def close(self) -> None:
        """Ends the run."""
        completed = get_event_storage().iter >= self._last_iteration
        self._try(self.finish, completed=completed)

    def _try(self, function: Any, *args: Any, **kwargs: Any) -> None:
        if self._failed:
            return
        try:
            function(*args, **kwargs)
        except Exception as e:
            self._failed = True
            logger.warning(
                "%s gets no more values: %s: %s. The training continues; metrics.json has all of "
                "them.", self.name, type(e).__name__, e,
            )  # fmt: skip


class WandbTracker(Tracker):
    """Weights & Biases. A resumed training continues the same run."""

    name = "wandb"

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__(cfg)
        import wandb

        self.wandb = wandb
        self.run = wandb.init(
            project=cfg.TRACKING.PROJECT,
            name=run_name(cfg),
            dir=cfg.OUTPUT_DIR,
            config=yaml.safe_load(cfg.dump()),
            id=remembered_id(cfg, self.name),
            resume="allow",
        )
        remember_id(cfg, self.name, self.run.id)

    def log(self, values: dict[str, float], iteration: int) -> None:
        """Sends the scalars of an iteration."""
        self.run.log(values, step=iteration)

    def log_image(self, name: str, image: np.ndarray, iteration: int) -> None:
        """Sends an RGB image (H, W, 3) uint8."""
        self.run.log({name: self.wandb.Image(image)}, step=iteration)

    def finish(self, *, completed: bool) -> None:
        """Ends the run at the service, as failed unless the training has reached its end."""
        self.run.finish(exit_code=0 if completed else 1)


class MlflowTracker(Tracker):
    """MLflow, at the address of ``MLFLOW_TRACKING_URI``. A resumed training continues its run."""

    name = "mlflow"

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__(cfg)
        import mlflow

        self.mlflow = mlflow
        mlflow.set_experiment(cfg.TRACKING.PROJECT)
        run = mlflow.start_run(
            run_id=remembered_id(cfg, self.name), run_name=run_name(cfg), log_system_metrics=False
        )
        remember_id(cfg, self.name, run.info.run_id)
        mlflow.log_dict(yaml.safe_load(cfg.dump()), "config.yaml")

    def log(self, values: dict[str, float], iteration: int) -> None:
        """Sends the scalars of an iteration."""
        self.mlflow.log_metrics(values, step=iteration)

    def log_image(self, name: str, image: np.ndarray, iteration: int) -> None:
        """Sends an RGB image (H, W, 3) uint8."""
        self.mlflow.log_image(image, key=name, step=iteration)

    def finish(self, *, completed: bool) -> None:
        """Ends the run at the service, as failed unless the training has reached its end."""
        self.mlflow.end_run("FINISHED" if completed else "FAILED")


TRACKERS: dict[str, Callable[[CfgNode], Tracker]] = {"wandb": WandbTracker, "mlflow": MlflowTracker}


def run_name(cfg: CfgNode) -> str:
    """Returns the name of a run: TRACKING.NAME, or that of the output folder."""
    return cfg.TRACKING.NAME or Path(cfg.OUTPUT_DIR).resolve().name


def remembered_id(cfg: CfgNode, service: str) -> str | None:
    """Returns the identifier of the run at a service that OUTPUT_DIR belongs to."""
    path = Path(cfg.OUTPUT_DIR, f"{service}_id.txt")
    return path.read_text("utf-8").strip() if path.is_file() else None


def forget_runs(cfg: CfgNode) -> None:
    """Forgets the runs at all services, so that a new training in OUTPUT_DIR starts new ones."""
    for service in TRACKERS:
        Path(cfg.OUTPUT_DIR, f"{service}_id.txt").unlink(missing_ok=True)


def remember_id(cfg: CfgNode, service: str, run_id: str) -> None:
    """Writes the identifier of the run at a service."""
    write_safely(str(Path(cfg.OUTPUT_DIR, f"{service}_id.txt")), f"{run_id}\n".encode())


def check_tracking(cfg: CfgNode) -> None:
    """Checks the keys of ``TRACKING``.

    Raises:
        ValueError: If a service is unknown or its library is not installed.
    """
    for service in cfg.TRACKING.SERVICES:
        if service not in TRACKERS:
            raise ValueError(
                f"TRACKING.SERVICES names {service!r}; known: {', '.join(map(repr, TRACKERS))}."
            )
        if importlib.util.find_spec(service) is None:
            raise ValueError(
                f"TRACKING.SERVICES names {service!r}, whose library is not installed: "
                f'pip install "person-search[{service}]", or set TRACKING.SERVICES "[]".'
            )


def build_trackers(cfg: CfgNode) -> list[Tracker]:
    """Starts a run at each service of ``TRACKING.SERVICES``.

    Raises:
        ValueError: If a service refuses, for example without a login.
    """
    trackers = []
    for service in cfg.TRACKING.SERVICES:
        try:
            trackers.append(TRACKERS[service](cfg))
        except Exception as e:
            raise ValueError(
                f"{service} (TRACKING.SERVICES) starts no run: {type(e).__name__}: {e}. Correct "
                'its settings (see its documentation), or set TRACKING.SERVICES "[]".'
            ) from e
    return trackers


# ---- drawn evaluations -------------------------------------------------------------------------
def draws_evaluation(cfg: CfgNode, iteration: int) -> bool:
    """Whether the evaluation after an iteration is drawn, see TRACKING.IMAGES_EVERY."""
    every, period = cfg.TRACKING.IMAGES_EVERY, cfg.TEST.EVAL_PERIOD
    shown = bool(cfg.TRACKING.SERVICES) or importlib.util.find_spec("tensorboard") is not None
    if every < 1 or not shown:
        return False
    last = iteration + 1 >= cfg.SOLVER.MAX_ITER
    return last or (period > 0 and (iteration + 1) // period % every == 0)


def draw_evaluation(evaluator: DatasetEvaluator, name: str) -> Iterator[tuple[str, np.ndarray]]:
    """Draws three searches of an evaluation, and the detections in two of their images.

    Args:
        evaluator: Evaluator with results.
        name: Test set.

    Yields:
        Name and RGB image (H, W, 3) uint8. Nothing for an evaluator of another project.
    """
    from person_search.vis.evaluation_sheet import draw_detections, draw_examples

    if not isinstance(evaluator, PersonSearchEvaluator):
        return
    records = DatasetCatalog.get(name)
    files = {record["image_id"]: record["file_name"] for record in records}
    images: list[int] = []
    for example in draw_examples(evaluator, files):
        yield f"{name}/search_{example.kind}", np.asarray(example.sheet)
        images += [entry.image_id for entry in example.entries[:1]]
    for number, image_id in enumerate(dict.fromkeys(images[:2]), start=1):
        sheet = draw_detections(evaluator, image_id, files[image_id])
        yield f"{name}/detections_{number}", np.asarray(sheet)


def show_evaluations(
    evaluators: Sequence[DatasetEvaluator],
    names: Sequence[str],
    trackers: Sequence[Tracker],
    iteration: int,
) -> None:
    """Sends the drawn evaluations to TensorBoard, if installed, and to the trackers."""
    for evaluator, name in zip(evaluators, names, strict=True):
        try:
            drawn = list(draw_evaluation(evaluator, name))
        except (OSError, ValueError) as e:  # an unreadable image, for example
            logger.warning("The evaluation of %s is not drawn: %s", name, e)
            continue
        for title, image in drawn:
            if importlib.util.find_spec("tensorboard") is not None:
                get_event_storage().put_image(title, image.transpose(2, 0, 1))
            for tracker in trackers:
                tracker.write_image(title, image, iteration)
