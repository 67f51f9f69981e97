# SPDX-License-Identifier: Apache-2.0
"""The person search evaluator for Detectron2's evaluation loop.

One inference per test image gives everything: gallery detections, their embeddings, and the
embeddings of the queries that the image holds. All protocols are scored from these.
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

from person_search.evaluation.coco_ap import coco_average_precision
from person_search.evaluation.collector import PredictionCollector
from person_search.evaluation.detection_metrics import evaluate_detection
from person_search.evaluation.ground_truth import GroundTruth, collect_ground_truth
from person_search.evaluation.predictions import PooledPredictions, find_rows, pool_predictions
from person_search.evaluation.protocol_index import check_protocol
from person_search.evaluation.report import Results, summary_line, try_to_write, write_results
from person_search.evaluation.search_metrics import (
    SearchScores,
    check_options,
    evaluate_search,
)
from person_search.schema import SearchProtocol
from person_search.utils.backend import backend_name

logger = logging.getLogger(__name__)


class PersonSearchEvaluator(DatasetEvaluator):
    """Detection AP and recall, search mAP and top-k; percent.

    Results: ``detection`` with ``AP``, ``recall``, ``precision``, ``AP50`` (COCO style),
    ``num_gt``, ``num_det``; ``search`` with ``mAP``, ``top<k>``, ``recall`` for the first
    protocol; ``search_<name>`` for each further one.
    """

    @configurable
    def __init__(
        self,
        dataset_name: str,
        *,
        output_dir: str | os.PathLike | None = None,
        score_thresh: float = 0.5,
        det_iou_thresh: float = 0.5,
        topk: Sequence[int] = (1, 5, 10),
        protocols: Sequence[str] = (),
        similarity: str = "cosine",
        duplicates: str = "seqnet",
        query_source: str = "gt_box",
        dump_predictions: bool = False,
    ) -> None:
        """
        Args:
            dataset_name: a registered test set whose metadata holds ``search_protocols``.
            output_dir: folder of the results file, or None to write none.
            score_thresh: detections below it take no part in anything.
            det_iou_thresh: IoU from which a detection can match (detection figures only).
            topk: the k of the top-k accuracies.
            protocols: names of protocols; empty takes the data set's default.
            similarity: ``cosine`` or ``cws`` (cosine times detection score).
            duplicates: ``seqnet`` or ``strict``, for images that a gallery lists twice.
            query_source: ``gt_box`` or ``best_det``, where the query's embedding comes from.
            dump_predictions: also write the pooled predictions into ``output_dir``.

        Raises:
            ValueError: a value that is not allowed, or a protocol that the data set does not have.
        """
        self._dataset_name = dataset_name
        self._output_dir = Path(output_dir) if output_dir is not None else None
        self._dump_predictions = dump_predictions
        self._settings = {
            "score_thresh": score_thresh,
            "det_iou_thresh": det_iou_thresh,
            "topk": list(topk),
            "similarity": similarity,
            "duplicates": duplicates,
            "query_source": query_source,
        }
        _check_settings(self._settings)
        metadata = MetadataCatalog.get(dataset_name)
        self._available = metadata.get("search_protocols", {})
        self._protocol_names = list(protocols or metadata.get("default_search_protocols", ()))
        self._check_protocol_names(self._protocol_names)
        self._ground_truth: GroundTruth | None = None
        self._loaded_protocols: dict[str, SearchProtocol] = {}
        self._predictions: PooledPredictions | None = None
        self._collector = PredictionCollector(score_thresh)

    @classmethod
    def from_config(
        cls, cfg: CfgNode, dataset_name: str, output_dir: str | os.PathLike | None = None
    ) -> dict[str, Any]:
        """Reads ``cfg.TEST.PERSON_SEARCH``; None as folder is ``<cfg.OUTPUT_DIR>/inference``."""
        keys = cfg.TEST.PERSON_SEARCH
        return {
            "dataset_name": dataset_name,
            "output_dir": output_dir or Path(cfg.OUTPUT_DIR) / "inference",
            "score_thresh": keys.SCORE_THRESH,
            "det_iou_thresh": keys.DET_IOU_THRESH,
            "topk": keys.TOPK,
            "protocols": keys.PROTOCOLS,
            "similarity": keys.SIMILARITY,
            "duplicates": keys.DUPLICATES,
            "query_source": keys.QUERY_SOURCE,
            "dump_predictions": keys.DUMP_PREDICTIONS,
        }

    @property
    def ground_truth(self) -> GroundTruth:
        """Boxes and queries of the test set; read from the catalog on first use."""
        if self._ground_truth is None:
            records = DatasetCatalog.get(self._dataset_name)
            self._ground_truth = collect_ground_truth(records, self._dataset_name)
        return self._ground_truth

    @property
    def predictions(self) -> PooledPredictions:
        """The pooled predictions of the last evaluation, on the main process."""
        if self._predictions is None:
            raise RuntimeError(
                "there are no predictions: run evaluate() or load_predictions() first "
                "(after evaluate() only the main process has them)"
            )
        return self._predictions

    def reset(self) -> None:
        """Starts a new evaluation.

        The main process reads and checks the protocols here, so that a missing or wrong protocol
        file ends the run before the inference and not after it.
        """
        self._collector = PredictionCollector(self._settings["score_thresh"])
        self._predictions = None
        if comm.is_main_process():
            for name in self._protocol_names:
                self.protocol(name)

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Takes over the outputs of one batch.

        Args:
            inputs: of the data loader; ``image_id`` is read, and ``queries`` is compared with the
                data set where it is there. Detections in a ``bad_image``, one that could not be
                read, do not count.
            outputs: per image ``instances`` (``pred_boxes`` in the frame of the original image,
                ``scores``, ``reid_feats``) and ``query_feats`` in the order of the queries.

        Raises:
            ValueError: naming the image, see :meth:`PredictionCollector.add`.
        """
        for one_input, output in zip(inputs, outputs, strict=True):
            image_id = int(one_input["image_id"])
            query_ids = self.ground_truth.query_ids.get(image_id)
            if query_ids is None:
                raise ValueError(
                    f"image_id {image_id} ({one_input.get('file_name', 'no file name')}) is not in "
                    f"data set '{self._dataset_name}'; is the loader built for the same data set?"
                )
            _check_query_order(one_input, query_ids, image_id)
            instances = output["instances"]
            if one_input.get("bad_image"):  # the mapper put a black image in its place
                instances = instances[:0]
            self._collector.add(image_id, instances, query_ids, output.get("query_feats"))

    def evaluate(self) -> Results:
        """Gathers from all processes and scores.

        Returns:
            ``{task: {metric: number}}`` on the main process, ``{}`` on the others.

        Raises:
            ValueError: an image came twice or never; it is named.
        """
        comm.synchronize()
        parts = comm.gather(self._collector.arrays(), dst=0)
        if not comm.is_main_process():
            return {}
        info = {
            "dataset": self._dataset_name,
            "score_thresh": self._settings["score_thresh"],
            "backend": backend_name(),
        }
        self._predictions = pool_predictions(parts, self.ground_truth.image_ids, info)
        self._collector = PredictionCollector(self._settings["score_thresh"])
        return self.score()

    def score(self) -> Results:
        """Scores the pooled predictions, logs one line and writes the results file."""
        start = time.perf_counter()
        results = {"detection": self._score_detection()}
        protocols = [self.protocol(name) for name in self._protocol_names]
        tasks = ["search"] + [f"search_{name}" for name in self._protocol_names[1:]]
        scores = self.score_protocols(protocols)
        for task, one in zip(tasks, scores, strict=True):
            results[task] = one.summary(self._settings["topk"])
        info = {
            "protocols": dict(zip(tasks, self._protocol_names, strict=True)),
            "num_queries": {t: len(s.query_ids) for t, s in zip(tasks, scores, strict=True)},
            "num_images": len(self.predictions.image_ids),
            "seconds": time.perf_counter() - start,
        }
        logger.info(summary_line(self._dataset_name, results, self._settings, info))
        self._write(results, info)
        return copy.deepcopy(results)

    def score_protocols(self, protocols: Sequence[SearchProtocol]) -> list[SearchScores]:
        """Scores any protocols of this data set, query by query, from the pooled predictions."""
        scores = evaluate_search(
            self.predictions,
            protocols,
            **{k: self._settings[k] for k in ("similarity", "duplicates", "query_source")},
        )
        for protocol, one in zip(protocols, scores, strict=True):
            for flags, reason in (
                (one.num_gt == 0, "no match in the gallery"),
                (~one.has_feat, "no detection in the query image to take the embedding from"),
            ):
                if flags.any():
                    logger.warning(
                        f"{self._dataset_name} [{protocol.name}]: {flags.sum()} of {len(flags)} "
                        f"queries have {reason} and score 0, first query_ids: "
                        f"{one.query_ids[flags][:5].tolist()}"
                    )
        return scores

    def protocol(self, name: str) -> SearchProtocol:
        """Reads a protocol of the data set and checks it against the records, once.

        Raises:
            ValueError: the data set has none of that name, or it contradicts the records.
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
        """Writes the pooled predictions, see :meth:`PooledPredictions.save` for the format."""
        self.predictions.save(path)

    def load_predictions(self, path: str | os.PathLike) -> None:
        """Takes over saved predictions; :meth:`score` then gives the figures without a model.

        Raises:
            ValueError: the file is broken, belongs to other images, or was cut at a higher score.
        """
        loaded = PooledPredictions.load(path)
        if not (loaded.image_ids.tolist() == self.ground_truth.image_ids.tolist()):
            raise ValueError(
                f"{path} was made on '{loaded.info.get('dataset')}': its images are not those of "
                f"'{self._dataset_name}'"
            )
        wanted = self._settings["score_thresh"]
        if loaded.info.get("score_thresh", wanted) > wanted:
            raise ValueError(
                f"{path} holds detections with score >= {loaded.info['score_thresh']} only, but "
                f"score_thresh is {wanted} (cfg.TEST.PERSON_SEARCH.SCORE_THRESH)"
            )
        self._predictions = loaded.above(wanted)

    def _score_detection(self) -> dict[str, float]:
        truth, p = self.ground_truth, self.predictions
        arrays = (truth.boxes, truth.offsets, p.boxes, p.scores, p.det_offsets)
        figures = evaluate_detection(*arrays, iou_thresh=self._settings["det_iou_thresh"])
        counts = {name: figures.pop(name) for name in ("num_gt", "num_det")}
        return {**figures, "AP50": coco_average_precision(*arrays, iou_thresh=0.5), **counts}

    def _write(self, results: Results, info: dict[str, Any]) -> None:
        if self._output_dir is None:
            return
        content = {
            "dataset": self._dataset_name,
            "backend": backend_name(),
            "results": results,
            "settings": self._settings,
            **info,
        }
        path = self._output_dir / f"{self._dataset_name}_results.json"
        try_to_write(path, lambda p: write_results(p, content))
        if self._dump_predictions:
            path = self._output_dir / f"{self._dataset_name}_predictions.npz"
            try_to_write(path, self.save_predictions)

    def _check_protocol_names(self, names: Sequence[str]) -> None:
        unknown = [name for name in names if name not in self._available]
        if unknown or not names:
            raise ValueError(
                f"data set '{self._dataset_name}' has no search protocol {unknown or ''}; it has "
                f"{sorted(self._available)} (cfg.TEST.PERSON_SEARCH.PROTOCOLS)"
            )


def _check_settings(settings: dict[str, Any]) -> None:
    """Refuses values that would give a figure that means something else than its name."""
    check_options(settings["similarity"], settings["duplicates"], settings["query_source"])
    for name in ("score_thresh", "det_iou_thresh"):
        if not 0.0 <= settings[name] <= 1.0:
            raise ValueError(
                f"{name} is {settings[name]}, must lie in [0, 1] "
                f"(cfg.TEST.PERSON_SEARCH.{name.upper()})"
            )
    topk = settings["topk"]
    if not topk or any(k != int(k) or k < 1 for k in topk):
        raise ValueError(
            f"topk is {topk}, must be whole numbers from 1 (cfg.TEST.PERSON_SEARCH.TOPK)"
        )


def _check_query_order(one_input: dict[str, Any], query_ids: list[int], image_id: int) -> None:
    """The embeddings are joined by order, so the model must have seen the record's order."""
    queries = one_input.get("queries")
    if queries is None or not hasattr(queries, "query_ids"):
        return
    seen = [int(query_id) for query_id in queries.query_ids]
    if seen != query_ids:
        raise ValueError(
            f"image_id {image_id}: the loader gave the queries {seen}, the data set has {query_ids}"
        )
