# SPDX-License-Identifier: Apache-2.0
"""The person search evaluator for Detectron2's evaluation loop.

One inference per test image returns gallery detections, their embeddings, and the embeddings of
the queries in the image. All protocols are scored from these.
"""

import copy
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from person_search.data import not_person_search
from person_search.evaluation.coco_ap import coco_average_precision, coco_summary
from person_search.evaluation.collector import PredictionCollector
from person_search.evaluation.detection_metrics import evaluate_detection
from person_search.evaluation.ground_truth import GroundTruth, collect_ground_truth
from person_search.evaluation.predictions import (
    PooledPredictions,
    find_rows,
    fit_to_dataset,
    pool_predictions,
    read_predictions,
    write_predictions,
)
from person_search.evaluation.protocol_index import check_protocol
from person_search.evaluation.report import Results, summary_line, try_to_write, write_results
from person_search.evaluation.search_metrics import SearchScores, evaluate_searches
from person_search.evaluation.settings import (
    EvaluationSettings,
    SearchOptions,
    Section,
    settings_from_config,
)
from person_search.schema import NO_QUERY_ID, SearchProtocol
from person_search.utils.backend import backend_name

logger = logging.getLogger(__name__)


class PersonSearchEvaluator(DatasetEvaluator):
    """Computes detection AP and recall, and search mAP and top-k accuracy, in percent.

    The results contain ``detection`` with ``AP``, ``recall``, ``precision``, ``AP50`` (COCO style),
    ``num_gt`` and ``num_det``; ``detection_...`` for further thresholds and COCO's own metrics;
    ``search`` with ``mAP``, ``top<k>`` and ``recall`` for the first protocol; and ``search_...``
    for each further protocol and variant, see :mod:`person_search.evaluation.settings`.

    Attributes:
        settings: Settings of the evaluation.
        sections: Search sections of the results.
        search_scores: Result of every query for each search section, after scoring.
    """

    @configurable
    def __init__(
        self,
        dataset_name: str,
        *,
        output_dir: str | os.PathLike | None = None,
        protocols: Sequence[str] = (),
        dump_predictions: bool = False,
        **settings: Any,
    ) -> None:
        """Creates an evaluator, from arguments or from a config.

        Args:
            dataset_name: Registered test set whose metadata has ``search_protocols``.
            output_dir: Folder of the results file; None writes no file.
            protocols: Names of protocols; empty selects the default of the data set.
            dump_predictions: Also writes the pooled predictions into ``output_dir``.
            **settings: Fields of :class:`EvaluationSettings`, for example ``topk=(1, 5)`` or
                ``variants=("cbgm", "gt")``. ``cbgm_k1`` and ``cbgm_k2`` default to the values of
                the data set, as does 0.

        Raises:
            ValueError: If a value is not allowed or the data set lacks a protocol.
        """
        self._dataset_name = dataset_name
        self._output_dir = Path(output_dir) if output_dir is not None else None
        self._dump_predictions = dump_predictions
        metadata = MetadataCatalog.get(dataset_name)
        default_cbgm = metadata.get("cbgm") or (SearchOptions.cbgm_k1, SearchOptions.cbgm_k2)
        for name, value in zip(("cbgm_k1", "cbgm_k2"), default_cbgm, strict=True):
            settings[name] = settings.get(name) or value
        self.settings = EvaluationSettings(**settings)
        self._available = metadata.get("search_protocols", {})
        self._protocol_names = list(protocols or metadata.get("default_search_protocols", ()))
        self._check_protocol_names(self._protocol_names)
        self.sections: list[Section] = self.settings.sections(self._protocol_names)
        self._needs_gt_boxes = self.settings.needs_gt_boxes
        self.search_scores: dict[str, SearchScores] = {}
        self._ground_truth: GroundTruth | None = None
        self._num_boxes: dict[int, int] = {}
        self._loaded_protocols: dict[str, SearchProtocol] = {}
        self._predictions: PooledPredictions | None = None
        self._collector = PredictionCollector(self.settings.score_thresh)

    @classmethod
    def from_config(
        cls, cfg: CfgNode, dataset_name: str, output_dir: str | os.PathLike | None = None
    ) -> dict[str, Any]:
        """Reads ``cfg.TEST.PERSON_SEARCH``; the folder defaults to ``<OUTPUT_DIR>/inference``."""
        keys = cfg.TEST.PERSON_SEARCH
        return {
            "dataset_name": dataset_name,
            "output_dir": output_dir or Path(cfg.OUTPUT_DIR) / "inference",
            "protocols": keys.PROTOCOLS,
            "dump_predictions": keys.DUMP_PREDICTIONS,
            **settings_from_config(keys),
        }

    @property
    def ground_truth(self) -> GroundTruth:
        """Boxes and queries of the test set, read from the catalog on first use."""
        if self._ground_truth is None:
            records = DatasetCatalog.get(self._dataset_name)
            self._ground_truth = truth = collect_ground_truth(records, self._dataset_name)
            counts = np.diff(truth.offsets).tolist()
            self._num_boxes = dict(zip(truth.image_ids.tolist(), counts, strict=True))
        return self._ground_truth

    @property
    def predictions(self) -> PooledPredictions:
        """The pooled predictions of the last evaluation, on the main process."""
        if self._predictions is None:
            raise RuntimeError(
                "no predictions: call evaluate() or load_predictions() first (after evaluate() "
                "only the main process has them)"
            )
        return self._predictions

    def reset(self) -> None:
        """Starts a new evaluation.

        The main process reads and checks the protocols, so that a missing or wrong protocol file
        raises its error before the inference and not after it.
        """
        self._collector = PredictionCollector(self.settings.score_thresh)
        self._predictions = None
        if comm.is_main_process():
            for name in self._protocol_names:
                self.protocol(name)

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Stores the outputs of one batch.

        Args:
            inputs: Inputs from the data loader. ``image_id`` is read, and ``queries``, if present,
                is compared with the data set. Detections in a ``bad_image``, which the mapper could
                not read, are ignored.
            outputs: For each image ``instances`` (``pred_boxes`` in the frame of the original
                image, ``scores``, ``reid_feats``) and ``query_feats`` in the order of the queries.

        Raises:
            ValueError: Naming the image, see :meth:`PredictionCollector.add`.
        """
        for one_input, output in zip(inputs, outputs, strict=True):
            image_id = int(one_input["image_id"])
            query_ids = self.ground_truth.query_ids.get(image_id)
            if query_ids is None:
                raise ValueError(
                    f"image_id {image_id} ({one_input.get('file_name', 'no file name')}) is not in "
                    f"data set '{self._dataset_name}'; was the loader built for another one?"
                )
            num_gt = self._num_boxes[image_id] if self._needs_gt_boxes else None
            _check_query_order(one_input, query_ids, image_id, num_gt or 0)
            instances = output["instances"]
            if one_input.get("bad_image"):  # the mapper put a black image in its place
                instances = instances[:0]
            feats = output.get("query_feats")
            self._collector.add(image_id, instances, query_ids, feats, num_gt)

    def evaluate(self) -> Results:
        """Gathers the outputs of all processes, writes them if requested, and scores them.

        Returns:
            ``{task: {metric: value}}`` on the main process, ``{}`` on the others.

        Raises:
            ValueError: If an image was processed twice or never.
        """
        comm.synchronize()
        parts = comm.gather(self._collector.arrays(), dst=0)
        if not comm.is_main_process():
            return {}
        truth = self.ground_truth
        self._predictions = pool_predictions(
            parts,
            truth.image_ids,
            {
                "dataset": self._dataset_name,
                "score_thresh": self.settings.score_thresh,
                "backend": backend_name(),
            },
            image_names=truth.image_names,
            gt_boxes=truth.boxes if self._needs_gt_boxes else None,
        )
        self._collector = PredictionCollector(self.settings.score_thresh)
        if self._dump_predictions and self._output_dir is not None:  # before anything can fail
            path = self._output_dir / f"{self._dataset_name}_predictions.npz"
            try_to_write(path, self.save_predictions)
        return self.score()

    def score(self) -> Results:
        """Scores the pooled predictions, logs one line and writes the results file."""
        start = time.perf_counter()
        results = self._score_detection()
        jobs = [(self.protocol(s.protocol), s.options) for s in self.sections]
        scores = evaluate_searches(self.predictions, jobs)
        self._warn(scores)
        self.search_scores = dict(zip((s.task for s in self.sections), scores, strict=True))
        for task, one in self.search_scores.items():
            results[task] = one.summary(self.settings.topk)
        info = {
            "protocols": {s.task: s.protocol for s in self.sections},
            "num_queries": {task: len(s.query_ids) for task, s in self.search_scores.items()},
            "num_images": len(self.predictions.image_ids),
            "seconds": time.perf_counter() - start,
        }
        logger.info(summary_line(self._dataset_name, results, self.settings, info))
        if self._output_dir is not None:
            content = {
                "dataset": self._dataset_name,
                "backend": backend_name(),
                "results": results,
                "settings": self.settings.as_dict(),
                **info,
            }
            path = self._output_dir / f"{self._dataset_name}_results.json"
            try_to_write(path, lambda p: write_results(p, content))
        return copy.deepcopy(results)

    def score_protocols(self, protocols: Sequence[SearchProtocol]) -> list[SearchScores]:
        """Scores any protocols of this data set, query by query, from the pooled predictions."""
        options = self.settings.with_variant(None)
        scores = evaluate_searches(self.predictions, [(p, options) for p in protocols])
        self._warn(scores)
        return scores

    def _warn(self, scores: Sequence[SearchScores]) -> None:
        """Warns of queries that cannot score, once per protocol and reason."""
        warned = set()
        for one in scores:
            for flags, reason in (
                (one.num_gt == 0, "no match in the gallery"),
                (~one.has_feat, "no detection in the query image to take the embedding from"),
            ):
                if flags.any() and (one.name, reason) not in warned:
                    warned.add((one.name, reason))
                    logger.warning(
                        f"{self._dataset_name} [{one.name}]: {flags.sum()} of {len(flags)} "
                        f"queries have {reason} and score 0, first query_ids: "
                        f"{one.query_ids[flags][:5].tolist()}"
                    )

    def protocol(self, name: str) -> SearchProtocol:
        """Returns a protocol of the data set, which is read and checked against the records once.

        Raises:
            ValueError: If the data set has no such protocol or it contradicts the records.
        """
        if name not in self._loaded_protocols:
            self._check_protocol_names([name])
            protocol = self._available[name]()
            truth = self.ground_truth
            check_protocol(protocol, truth.image_ids)
            attached = [q for ids in truth.query_ids.values() for q in ids]
            wanted = [q.query_id for q in protocol.queries]
            where = f"records of '{self._dataset_name}', protocol '{name}'"
            find_rows(np.array(attached), wanted, "query_id", where)
            self._loaded_protocols[name] = protocol
        return self._loaded_protocols[name]

    def save_predictions(self, path: str | os.PathLike) -> None:
        """Writes the pooled predictions, see ``docs/predictions_format.md``."""
        write_predictions(self.predictions, path)

    def load_predictions(self, path: str | os.PathLike) -> None:
        """Loads saved predictions, so that :meth:`score` works without a model.

        Raises:
            ValueError: If the file is damaged, belongs to other images, was made with a higher
                score threshold, or lacks required embeddings of queries or ground truth boxes.
        """
        loaded = fit_to_dataset(read_predictions(path), self.ground_truth, self._dataset_name, path)
        wanted = self.settings.score_thresh
        if loaded.info.get("score_thresh", wanted) > wanted:
            raise ValueError(
                f"{path} has detections with score >= {loaded.info['score_thresh']} only, but "
                f"score_thresh is {wanted} (cfg.TEST.PERSON_SEARCH.SCORE_THRESH)"
            )
        if self._needs_gt_boxes and loaded.gt_arrays is None:
            raise ValueError(
                f"{path} contains no embeddings of the ground truth boxes, which "
                "cfg.TEST.PERSON_SEARCH requests by 'gt'; leave 'gt' out, or re-create the file "
                "with it"
            )
        for section in self.sections:
            if section.options.query_source == "gt_box":
                query_ids = [q.query_id for q in self.protocol(section.protocol).queries]
                where = (
                    f"{path}, embeddings of the queries of protocol '{section.protocol}' "
                    "(QUERY_SOURCE 'best_det' needs none)"
                )
                find_rows(loaded.query_ids, query_ids, "query_id", where)
        self._predictions = loaded.above(wanted)

    def _score_detection(self) -> Results:
        truth, results = self.ground_truth, {}
        for task, (iou_thresh, score_thresh) in self.settings.detection_sections().items():
            p = self.predictions
            p = p if score_thresh <= self.settings.score_thresh else p.above(score_thresh)
            arrays = (truth.boxes, truth.offsets, p.boxes, p.scores, p.det_offsets)
            metrics = evaluate_detection(*arrays, iou_thresh=iou_thresh)
            counts = {name: metrics.pop(name) for name in ("num_gt", "num_det")}
            if task == "detection":
                metrics |= {"AP50": coco_average_precision(*arrays, iou_thresh=0.5), **counts}
                if self.settings.coco_ap:
                    results["detection_coco"] = coco_summary(*arrays)
            results[task] = metrics
        return {"detection": results.pop("detection"), **results}

    def _check_protocol_names(self, names: Sequence[str]) -> None:
        if not self._available:
            raise not_person_search(self._dataset_name, "it has no search protocols")
        unknown = [name for name in names if name not in self._available]
        if unknown or not names:
            raise ValueError(
                f"data set '{self._dataset_name}' has no search protocol {unknown or ''}; it has "
                f"{sorted(self._available)} (cfg.TEST.PERSON_SEARCH.PROTOCOLS)"
            )


def _check_query_order(
    one_input: dict[str, Any], query_ids: list[int], image_id: int, num_gt: int
) -> None:
    """Raises a ValueError if the model saw queries in another order than that of the record."""
    queries = one_input.get("queries")
    if queries is None or not hasattr(queries, "query_ids"):
        return
    seen = [int(query_id) for query_id in queries.query_ids]
    expected = query_ids + num_gt * [NO_QUERY_ID]
    if seen != expected:
        boxes = f" and {num_gt} ground truth boxes ({NO_QUERY_ID})" if num_gt else ""
        raise ValueError(
            f"image_id {image_id}: the loader returned the queries {seen}, the data set has "
            f"{query_ids}{boxes}"
        )
