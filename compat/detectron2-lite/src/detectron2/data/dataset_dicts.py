# SPDX-License-Identifier: Apache-2.0
"""Records of registered data sets: loaded, filtered, joined with proposals, summed up."""

import itertools
import logging
import pickle

import numpy as np
import torch.utils.data as torchdata
from detectron2.structures import BoxMode
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import log_first_n
from tabulate import tabulate
from termcolor import colored

from .catalog import DatasetCatalog, MetadataCatalog
from .detection_utils import check_metadata_consistency

logger = logging.getLogger(__name__)


def filter_images_with_only_crowd_annotations(dataset_dicts):
    """Returns the records with at least one annotation that is not a crowd."""
    kept = [
        record
        for record in dataset_dicts
        if any(annotation.get("iscrowd", 0) == 0 for annotation in record["annotations"])
    ]
    logger.info(
        "Removed %d images with no usable annotations. %d images left.",
        len(dataset_dicts) - len(kept),
        len(kept),
    )
    return kept


def filter_images_with_few_keypoints(dataset_dicts, min_keypoints_per_image):
    """Returns the records whose annotations have that many labelled keypoints in sum."""

    def labelled_keypoints(record) -> int:
        return sum(
            int((np.array(annotation["keypoints"][2::3]) > 0).sum())
            for annotation in record["annotations"]
            if "keypoints" in annotation
        )

    kept = [r for r in dataset_dicts if labelled_keypoints(r) >= min_keypoints_per_image]
    logger.info(
        "Removed %d images with fewer than %d keypoints.",
        len(dataset_dicts) - len(kept),
        min_keypoints_per_image,
    )
    return kept


def load_proposals_into_dataset(dataset_dicts, proposal_file):
    """Adds precomputed proposals to records.

    Args:
        dataset_dicts: records, changed in place; images without proposals stay as they are.
        proposal_file: pickled dict of lists of the same length: "ids", "boxes" (each (N, 4)) and
            "objectness_logits" (each (N,)), optionally "bbox_mode". The names of before, "indexes"
            and "scores", are understood too.

    Returns:
        The records, with ``proposal_boxes`` and ``proposal_objectness_logits``, best first, and
        ``proposal_bbox_mode``.
    """
    logger.info("Loading proposals from: %s", proposal_file)
    with PathManager.open(proposal_file, "rb") as f:
        proposals = pickle.load(f, encoding="latin1")
    for old, current in (("indexes", "ids"), ("scores", "objectness_logits")):
        if old in proposals:
            proposals[current] = proposals.pop(old)

    wanted = {str(record["image_id"]) for record in dataset_dicts}
    row_of = {str(i): row for row, i in enumerate(proposals["ids"]) if str(i) in wanted}
    mode = BoxMode(proposals.get("bbox_mode", BoxMode.XYXY_ABS))
    for record in dataset_dicts:
        row = row_of.get(str(record["image_id"]))
        if row is None:
            continue
        logits = proposals["objectness_logits"][row]
        order = logits.argsort()[::-1]
        record["proposal_boxes"] = proposals["boxes"][row][order]
        record["proposal_objectness_logits"] = logits[order]
        record["proposal_bbox_mode"] = mode
    return dataset_dicts


def print_instances_class_histogram(dataset_dicts, class_names):
    """Logs how many instances of each class there are, crowds left out."""
    num_classes = len(class_names)
    counts = np.zeros(num_classes, dtype=int)
    for record in dataset_dicts:
        classes = np.asarray(
            [a["category_id"] for a in record["annotations"] if not a.get("iscrowd", 0)], dtype=int
        )
        outside = classes[(classes < 0) | (classes >= num_classes)]
        assert len(outside) == 0, (
            f"{record.get('file_name')}: category_id {outside[0]} is not in [0, {num_classes})"
        )
        counts += np.bincount(classes, minlength=num_classes)

    def shortened(name: str) -> str:
        return name[:11] + ".." if len(name) > 13 else name

    columns = min(6, num_classes * 2)
    cells = list(
        itertools.chain(*([shortened(n), int(c)] for n, c in zip(class_names, counts, strict=True)))
    )
    cells.extend([None] * (-len(cells) % columns))
    if num_classes > 1:
        cells.extend(["total", int(counts.sum())])
    rows = [cells[i : i + columns] for i in range(0, len(cells), columns)]
    table = tabulate(
        rows,
        headers=["category", "#instances"] * (columns // 2),
        tablefmt="pipe",
        numalign="left",
        stralign="center",
    )
    log_first_n(
        logging.INFO,
        f"Distribution of instances among all {num_classes} categories:\n" + colored(table, "cyan"),
        key="message",
    )


def get_detection_dataset_dicts(
    names,
    filter_empty=True,
    min_keypoints=0,
    proposal_files=None,
    check_consistency=True,
):
    """Loads and joins the records of one or several registered data sets.

    Args:
        names: a name or a list of names.
        filter_empty: leave out images without annotations, or with crowds only.
        min_keypoints: leave out images with fewer keypoints; 0 keeps all.
        proposal_files: one file for each name, see ``load_proposals_into_dataset``.
        check_consistency: require that the data sets have the same classes.

    Returns:
        The list of records; or, where the names stand for PyTorch data sets, one PyTorch data set
        of their elements.
    """
    names = [names] if isinstance(names, str) else names
    assert len(names), names
    unknown = set(names) - set(DatasetCatalog.keys())
    if unknown:
        raise KeyError(
            f"Dataset {sorted(unknown)} is not registered! "
            f"Available datasets are: {', '.join(DatasetCatalog.keys())}"
        )
    loaded = [DatasetCatalog.get(name) for name in names]

    if isinstance(loaded[0], torchdata.Dataset):
        if len(loaded) == 1:
            return loaded[0]
        if all(isinstance(dataset, torchdata.IterableDataset) for dataset in loaded):
            return torchdata.ChainDataset(loaded)
        return torchdata.ConcatDataset(loaded)

    for name, records in zip(names, loaded, strict=True):
        assert len(records), f"Dataset '{name}' is empty!"
    if proposal_files is not None:
        assert len(names) == len(proposal_files), (
            f"there must be one proposal file for each data set, got {len(proposal_files)} for "
            f"{len(names)}"
        )
        loaded = [
            load_proposals_into_dataset(records, proposal_file)
            for records, proposal_file in zip(loaded, proposal_files, strict=True)
        ]

    records = list(itertools.chain.from_iterable(loaded))
    has_instances = "annotations" in records[0]
    if filter_empty and has_instances:
        records = filter_images_with_only_crowd_annotations(records)
    if min_keypoints > 0 and has_instances:
        records = filter_images_with_few_keypoints(records, min_keypoints)
    if check_consistency and has_instances:
        class_names = MetadataCatalog.get(names[0]).get("thing_classes")
        if class_names is not None:  # data sets need not name their classes
            check_metadata_consistency("thing_classes", names)
            print_instances_class_histogram(records, class_names)
    assert len(records), f"No valid data found in {','.join(names)}."
    return records
