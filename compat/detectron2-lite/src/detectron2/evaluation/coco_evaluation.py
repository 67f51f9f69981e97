# SPDX-License-Identifier: Apache-2.0
"""COCO's average precision of boxes, and average recall of proposals."""

import contextlib
import copy
import io
import itertools
import json
import logging
import os
import pickle
from collections import OrderedDict
from functools import partial

import numpy as np
import torch
from detectron2._lite import NotInLiteError, absence_message
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data.datasets.coco import convert_to_coco_json
from detectron2.structures import BoxMode
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import create_small_table, log_first_n
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tabulate import tabulate

from .box_proposals import evaluate_box_proposals
from .evaluator import DatasetEvaluator
from .fast_eval_api import COCOeval_opt

_BOX_METRICS = ["AP", "AP50", "AP75", "APs", "APm", "APl"]


class COCOEvaluator(DatasetEvaluator):
    """Average precision of boxes by COCO's rules, in percent; nan where it is not defined.

    Any data set of boxes will do: one without a COCO json is written as one first. Predicted masks
    and keypoints are left out; Detectron2's evaluator has them.
    """

    def __init__(
        self,
        dataset_name,
        tasks=None,
        distributed=True,
        output_dir=None,
        *,
        max_dets_per_image=None,
        use_fast_impl=True,
        kpt_oks_sigmas=(),
        allow_cached_coco=True,
    ):
        """
        Args:
            dataset_name: registered name. Its metadata has `json_file`, or its records are
                converted into `output_dir`.
            tasks: ("bbox",), or None to take that from the predictions.
            distributed: collect the predictions of all ranks on rank 0.
            output_dir: where to leave "instances_predictions.pth" (all predictions) and
                "coco_instances_results.json" (in COCO's result format).
            max_dets_per_image: largest number of detections counted in an image; 100 when None.
            use_fast_impl: kept for compatibility; there is one implementation.
            kpt_oks_sigmas: kept for compatibility; keypoints are not evaluated.
            allow_cached_coco: reuse a json file converted earlier.
        """
        self._logger = logging.getLogger(__name__)
        self._distributed = distributed
        self._output_dir = output_dir
        self._use_fast_impl = use_fast_impl
        self._max_dets_per_image = [1, 10, max_dets_per_image or 100]
        if isinstance(tasks, CfgNode):
            self._logger.warning("COCOEvaluator takes no cfg any more; it reads the predictions")
            tasks = None
        for task in tasks or ():
            if task != "bbox":
                name = f"{__name__}.COCOEvaluator(tasks={tasks!r})"
                raise NotInLiteError(absence_message(name), name=name)
        self._tasks = tasks
        self._metadata = MetadataCatalog.get(dataset_name)
        if not hasattr(self._metadata, "json_file"):
            self._write_json(dataset_name, allow_cached_coco)
        self._coco_api = _read_silently(PathManager.get_local_path(self._metadata.json_file))

    def _has_ground_truth(self) -> bool:
        """False, with a note in the log, for test sets that keep their annotations secret."""
        found = "annotations" in self._coco_api.dataset
        if not found:
            self._logger.info(f"No figures: {self._metadata.json_file} has no annotations")
        return found

    def _write_json(self, dataset_name: str, allow_cached: bool) -> None:
        if self._output_dir is None:
            raise ValueError(
                "output_dir must be provided to COCOEvaluator for datasets not in COCO format: "
                f"'{dataset_name}' has no json_file in its metadata"
            )
        self._logger.info(f"Writing the annotations of '{dataset_name}' as a COCO json")
        path = os.path.join(self._output_dir, f"{dataset_name}_coco_format.json")
        self._metadata.json_file = path
        convert_to_coco_json(dataset_name, path, allow_cached=allow_cached)

    def reset(self):
        self._predictions = []

    def process(self, inputs, outputs):
        """Take one batch.

        Args:
            inputs: list of dicts with `image_id`.
            outputs: list of dicts with `instances`, `proposals`, or both.
        """
        for record, output in zip(inputs, outputs, strict=False):
            image_id = record["image_id"]
            kinds = [kind for kind in ("instances", "proposals") if kind in output]
            on_cpu = {kind: output[kind].to("cpu") for kind in kinds}
            if "instances" in on_cpu:
                on_cpu["instances"] = instances_to_coco_json(on_cpu["instances"], image_id)
            if on_cpu:
                self._predictions.append({"image_id": image_id, **on_cpu})

    def evaluate(self, img_ids=None):
        """Compute the figures.

        Args:
            img_ids: only these images; all by default.

        Returns:
            {"bbox": {"AP", "AP50", "AP75", "APs", "APm", "APl", "AP-<class>" ...}} and, where there
            are proposals, "box_proposals"; empty without predictions and on ranks other than 0.
        """
        predictions = self._predictions
        if self._distributed:
            comm.synchronize()
            predictions = list(itertools.chain(*comm.gather(predictions, dst=0)))
            if not comm.is_main_process():
                return {}
        if not predictions:
            self._logger.warning("COCOEvaluator: no image has instances or proposals")
            return {}
        self._save("instances_predictions.pth", "wb", partial(torch.save, predictions))
        self._results = OrderedDict()
        evaluations = {
            "proposals": self._eval_box_proposals,
            "instances": partial(self._eval_predictions, img_ids=img_ids),
        }
        for kind, evaluate in evaluations.items():
            # All images have the same kinds of predictions.
            if kind in predictions[0]:
                evaluate(predictions)
        # The caller may change what it gets.
        return copy.deepcopy(self._results)

    def _save(self, name: str, mode: str, write) -> None:
        """Call `write(file)` with a new file in the output folder, if there is a folder."""
        if not self._output_dir:
            return
        PathManager.mkdirs(self._output_dir)
        path = os.path.join(self._output_dir, name)
        self._logger.info(f"Saving results to {path}")
        with PathManager.open(path, mode) as f:
            write(f)

    def _tasks_from_predictions(self, predictions) -> list[str]:
        return ["bbox"]

    def _to_dataset_categories(self, coco_results: list[dict]) -> None:
        """Replace class indices by the category ids that the json file uses."""
        if not hasattr(self._metadata, "thing_dataset_id_to_contiguous_id"):
            return
        to_contiguous = self._metadata.thing_dataset_id_to_contiguous_id
        num_classes = len(to_contiguous)
        assert sorted(to_contiguous.values()) == list(range(num_classes)), to_contiguous
        to_dataset = {contiguous: dataset for dataset, contiguous in to_contiguous.items()}
        for result in coco_results:
            predicted = result["category_id"]
            assert predicted in to_dataset, (
                f"image {result['image_id']} has a prediction of class {predicted}; the classes "
                f"of the data set are 0 to {num_classes - 1}"
            )
            result["category_id"] = to_dataset[predicted]

    def _eval_predictions(self, predictions, img_ids=None):
        coco_results = list(itertools.chain(*[p["instances"] for p in predictions]))
        tasks = self._tasks or self._tasks_from_predictions(coco_results)
        self._to_dataset_categories(coco_results)
        self._save("coco_instances_results.json", "w", partial(json.dump, coco_results))
        if not self._has_ground_truth():
            return
        self._logger.info("Evaluating predictions with official COCO API...")
        for task in sorted(tasks):
            coco_eval = None
            if coco_results:
                coco_eval = _evaluate_predictions_on_coco(
                    self._coco_api,
                    coco_results,
                    task,
                    cocoeval_fn=COCOeval_opt if self._use_fast_impl else COCOeval,
                    img_ids=img_ids,
                    max_dets_per_image=self._max_dets_per_image,
                )
            self._results[task] = self._derive_coco_results(
                coco_eval, task, class_names=self._metadata.get("thing_classes")
            )

    def _eval_box_proposals(self, predictions):
        self._save_proposals(predictions)
        if not self._has_ground_truth():
            return
        results = {}
        for limit in (100, 1000):
            for area, suffix in {"all": "", "small": "s", "medium": "m", "large": "l"}.items():
                stats = evaluate_box_proposals(predictions, self._coco_api, area=area, limit=limit)
                results[f"AR{suffix}@{limit:d}"] = float(stats["ar"].item() * 100)
        self._logger.info("Proposal metrics: \n" + create_small_table(results))
        self._results["box_proposals"] = results

    def _save_proposals(self, predictions) -> None:
        """Write the file that later trainings read as precomputed proposals."""
        data = {
            "boxes": [p["proposals"].proposal_boxes.tensor.numpy() for p in predictions],
            "objectness_logits": [p["proposals"].objectness_logits.numpy() for p in predictions],
            "ids": [p["image_id"] for p in predictions],
            "bbox_mode": BoxMode.XYXY_ABS.value,
        }
        self._save("box_proposals.pkl", "wb", partial(pickle.dump, data))

    def _derive_coco_results(self, coco_eval, iou_type, class_names=None) -> dict:
        """Read the figures from a finished `COCOeval`; None stands for "no predictions"."""
        if coco_eval is None:
            self._logger.warning("There are no detections: all metrics are nan")
            return dict.fromkeys(_BOX_METRICS, float("nan"))
        results = {
            metric: float(value * 100) if value >= 0 else float("nan")
            for metric, value in zip(_BOX_METRICS, coco_eval.stats, strict=False)
        }
        self._logger.info(f"Evaluation results for {iou_type}: \n" + create_small_table(results))
        undefined = [name for name, value in results.items() if not np.isfinite(value)]
        if undefined:
            self._logger.info(f"nan stands for: no ground truth of that size ({undefined})")
        # With one class its AP is the AP above.
        if len(class_names or ()) > 1:
            results.update(self._per_category_ap(coco_eval, iou_type, class_names))
        return results

    def _per_category_ap(self, coco_eval, iou_type, class_names) -> dict[str, float]:
        """AP of each class, logged as a table, and returned as "AP-<class>"."""
        # (overlap thresholds, recalls, classes, area ranges, detection limits)
        precisions = coco_eval.eval["precision"]
        assert len(class_names) == precisions.shape[2], (class_names, precisions.shape)
        per_category = []
        for index, name in enumerate(class_names):
            precision = precisions[:, :, index, 0, -1]
            precision = precision[precision > -1]
            mean = np.mean(precision) if precision.size else float("nan")
            per_category.append((f"{name}", float(mean * 100)))
        self._logger.info(f"Per-category {iou_type} AP: \n" + _category_table(per_category))
        return {f"AP-{name}": value for name, value in per_category}


def _read_silently(json_file: str) -> COCO:
    """pycocotools' view of a json file, without what it prints about itself."""
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(json_file)


def _category_table(per_category: list[tuple[str, float]]) -> str:
    """(category, AP) pairs as a table of up to three pairs a line."""
    num_columns = min(6, len(per_category) * 2)
    cells = list(itertools.chain(*per_category))
    rows = itertools.zip_longest(*[cells[start::num_columns] for start in range(num_columns)])
    return tabulate(
        rows,
        tablefmt="pipe",
        floatfmt=".3f",
        headers=["category", "AP"] * (num_columns // 2),
        numalign="left",
    )


def instances_to_coco_json(instances, img_id) -> list[dict]:
    """Predictions of one image in COCO's result format.

    Args:
        instances: with pred_boxes, scores, pred_classes.
        img_id: id of the image.

    Returns:
        One dict for each instance: image_id, category_id (the class index), bbox (XYWH), score.
    """
    if not len(instances):
        return []
    if instances.has("pred_masks") or instances.has("pred_keypoints"):
        log_first_n(
            logging.WARNING,
            "Only boxes are evaluated: masks and keypoints need Detectron2 itself",
            name=__name__,
        )
    boxes = BoxMode.convert(
        torch.as_tensor(instances.pred_boxes.tensor.numpy()), BoxMode.XYXY_ABS, BoxMode.XYWH_ABS
    )
    columns = (instances.pred_classes.tolist(), boxes.tolist(), instances.scores.tolist())
    return [
        {"image_id": img_id, "category_id": category, "bbox": box, "score": score}
        for category, box, score in zip(*columns, strict=True)
    ]


def _evaluate_predictions_on_coco(
    coco_gt,
    coco_results,
    iou_type,
    kpt_oks_sigmas=None,
    cocoeval_fn=COCOeval_opt,
    img_ids=None,
    max_dets_per_image=None,
):
    """Run pycocotools on a non-empty list of results and return the finished `COCOeval`."""
    assert len(coco_results) > 0
    max_dets = max_dets_per_image or [1, 10, 100]
    assert len(max_dets) >= 3, "COCOeval's summary needs three limits of detections"
    if max_dets[2] != 100:
        cocoeval_fn = COCOevalMaxDets
    run = cocoeval_fn(coco_gt, coco_gt.loadRes(coco_results), iou_type)
    run.params.maxDets = max_dets
    if img_ids is not None:
        run.params.imgIds = img_ids
    for phase in (run.evaluate, run.accumulate, run.summarize):
        phase()
    return run


class COCOevalMaxDets(COCOeval):
    """`COCOeval` whose AP counts the detections up to `params.maxDets[2]`.

    pycocotools' own summary looks for the limit 100 and finds nothing under another.
    """

    def _mean(self, precision: bool, iou: float | None, area: str, max_dets: int) -> float:
        """Mean of the defined values of one figure, -1 without any; also prints its line."""
        params = self.params
        values = self.eval["precision" if precision else "recall"]
        if iou is not None:
            values = values[np.isclose(params.iouThrs, iou)]
        area_index = params.areaRngLbl.index(area)
        values = values[..., area_index, list(params.maxDets).index(max_dets)]
        values = values[values > -1]
        mean = float(np.mean(values)) if values.size else -1.0
        kind = "Average Precision  (AP)" if precision else "Average Recall     (AR)"
        span = f"{iou:0.2f}" if iou else f"{params.iouThrs[0]:0.2f}:{params.iouThrs[-1]:0.2f}"
        print(
            f" {kind} @[ IoU={span:<9} | area={area:>6s} | maxDets={max_dets:>3d} ] = {mean:0.3f}"
        )
        return mean

    def summarize(self):
        """Print the twelve usual lines and fill `stats`."""
        if not self.eval:
            raise RuntimeError("summarize() comes after evaluate() and accumulate()")
        limits = self.params.maxDets
        self.stats = np.array(
            [self._mean(True, iou, "all", limits[2]) for iou in (None, 0.5, 0.75)]
            + [self._mean(True, None, area, limits[2]) for area in ("small", "medium", "large")]
            + [self._mean(False, None, "all", limit) for limit in limits[:3]]
            + [self._mean(False, None, area, limits[2]) for area in ("small", "medium", "large")]
        )
