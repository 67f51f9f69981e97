#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Measures how person-search groups the frames of a video into tracklets.

    pip install motmetrics 'supervision<0.27'
    python benchmarks/benchmark_tracklets.py --mot FOLDER --weights mobilenet_v2.safetensors \
        --protocol identity_test.json

FOLDER has one folder per sequence: img1/, gt/gt.txt and seqinfo.ini, the format of MOTChallenge.
The detections are the true boxes; and a noisy version: 15 % are missing, and every side is off by a
normal error of 6 % of the size of the box. Embeddings are those of a timm classifier on crops of
224 x 112 pixels: ImageNet features, which have not been trained for persons.

The first table has IDF1 of motmetrics, in percent, over all sequences together and all frames, and
with frames sampled every half second and every second, for

    tracklets    the rule of person_search/search/tracklets.py
    colors       the same, with color histograms as embeddings: how the rule depends on the model
    place only   the same, with equal embeddings
    ByteTrack    that of supervision, with its default values and the rate of the sampled frames

A last row has the number of tracklets that cross a cut if the sequences are joined to one video.

The second table has the search with and without averaged embeddings, on a protocol of
tools/convert_dataset.py: mAP and top-1 over all persons in all frames, each with the embedding of
its tracklet, and over the tracklets, each of which shows the person of most of its frames. Boxes
are the true ones. The image of the query is left out, also from the averages.
"""

import argparse
import configparser
import importlib.util
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from person_search.cli import program_parser, run_program

MISSING, ERROR = 0.15, 0.06
CROP, BATCH = (112, 224), 32
INTERVALS = (0.0, 0.5, 1.0)
AVERAGED = (0, 1, 3, 5, 10, 10**6)


@dataclass(frozen=True)
class Video:
    """Persons of a sequence, frame by frame.

    Attributes:
        name: Name of the sequence.
        rate: Frames per second.
        frames: Numbers of all frames (F,), also those without persons.
        frame: Frame of each person (n,).
        person: Identity (n,).
        boxes: XYXY pixels (n, 4).
        feats: Embeddings (n, D).
    """

    name: str
    rate: float
    frames: np.ndarray
    frame: np.ndarray
    person: np.ndarray
    boxes: np.ndarray
    feats: np.ndarray

    def select(self, mask: np.ndarray) -> "Video":
        """Returns some of the persons."""
        names = ("frame", "person", "boxes", "feats")
        return replace(self, **{name: getattr(self, name)[mask] for name in names})

    def sampled(self, every: float) -> "Video":
        """Returns the first frame of each interval, as ``person-search index --every`` does."""
        if not every:
            return self
        interval = ((self.frames - self.frames[0]) / self.rate / every + 1e-6).astype(int)
        frames = self.frames[np.r_[True, np.diff(interval) > 0]]
        return replace(self.select(np.isin(self.frame, frames)), frames=frames)

    def counts(self) -> np.ndarray:
        """Returns the number of persons of each frame (F,)."""
        return np.searchsorted(self.frame, self.frames, "right") - np.searchsorted(
            self.frame, self.frames
        )


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = program_parser(__doc__)
    add = parser.add_argument
    add("--mot", type=Path, required=True, metavar="FOLDER", help="folder of the sequences")
    add("--weights", type=Path, required=True, metavar="FILE", help="weights of the classifier")
    add("--backbone", default="mobilenetv2_100", metavar="NAME",
        help="name of the classifier in timm (default: mobilenetv2_100)")  # fmt: skip
    add("--protocol", type=Path, metavar="FILE", help="test set whose search is measured, too")
    add("--cache", type=Path, metavar="FOLDER", help="folder that keeps the embeddings")
    return parser.parse_args(argv)


# ---- data ----------------------------------------------------------------------------------------


def read_video(folder: Path, noisy: bool) -> Video:
    """Reads a sequence without embeddings; noisy ones are the same in every call."""
    info = configparser.ConfigParser()
    info.read(folder / "seqinfo.ini")
    truth = np.loadtxt(folder / "gt" / "gt.txt", delimiter=",", ndmin=2)
    truth = truth[np.lexsort((truth[:, 1], truth[:, 0]))]
    boxes = np.hstack([truth[:, 2:4], truth[:, 2:4] + truth[:, 4:6]])
    video = Video(
        folder.name,
        info.getfloat("Sequence", "frameRate"),
        np.arange(1, info.getint("Sequence", "seqLength") + 1),
        truth[:, 0].astype(int),
        truth[:, 1].astype(int),
        boxes,
        np.zeros((len(boxes), 0)),
    )
    if not noisy:
        return video
    rng = np.random.default_rng(0)
    errors = ERROR * rng.normal(size=boxes.shape) * np.tile(truth[:, 4:6], 2)
    return replace(video, boxes=boxes + errors).select(rng.random(len(boxes)) >= MISSING)


def classifier(name: str, weights: Path) -> Callable[[Sequence[np.ndarray]], np.ndarray]:
    """Returns a function from crops (H, W, 3) uint8 RGB to embeddings (n, D) of unit length."""
    import cv2
    import timm
    import torch

    if name not in timm.list_models():
        raise ValueError(f"--backbone is '{name}', which timm does not have.")
    model = timm.create_model(name, num_classes=0, checkpoint_path=str(weights)).eval()
    config = timm.data.resolve_model_data_config(model)
    mean, std = np.float32(config["mean"]), np.float32(config["std"])

    @torch.no_grad()
    def embed(crops: Sequence[np.ndarray]) -> np.ndarray:
        pixels = np.stack([cv2.resize(crop, CROP).astype(np.float32) / 255 for crop in crops])
        feats = model(torch.from_numpy(((pixels - mean) / std).transpose(0, 3, 1, 2)))
        return torch.nn.functional.normalize(feats).numpy()

    return embed


def color_histograms(crops: Sequence[np.ndarray]) -> np.ndarray:
    """Returns embeddings (n, 512) of unit length: HSV histograms of four stripes."""
    import cv2

    sizes, ranges = [8, 4, 4], [0, 180, 0, 256, 0, 256]
    feats = []
    for crop in crops:
        stripes = np.array_split(cv2.cvtColor(cv2.resize(crop, CROP), cv2.COLOR_RGB2HSV), 4)
        histograms = [cv2.calcHist([one], [0, 1, 2], None, sizes, ranges) for one in stripes]
        feats.append(np.sqrt(np.ravel(histograms)))
    return feats / np.linalg.norm(feats, axis=1, keepdims=True)


def crops_of(video: Video, folder: Path) -> Iterator[np.ndarray]:
    """Yields the crop of each person, clipped to the image."""
    from person_search.search.images import read_image

    number, image = -1, np.zeros((0, 0, 3), np.uint8)
    for frame, box in zip(video.frame, video.boxes, strict=True):
        if frame != number:
            number, image = frame, read_image(folder / "img1" / f"{frame:06d}.jpg")
        height, width = image.shape[:2]
        x1, y1 = np.clip(np.floor(box[:2]).astype(int), 0, [width - 2, height - 2])
        x2, y2 = np.clip(np.ceil(box[2:]).astype(int), [x1 + 2, y1 + 2], [width, height])
        yield image[y1:y2, x1:x2]


def embedded(cache: Path | None, folder: Path, noisy: bool, embed) -> Video:
    """Reads a sequence with its embeddings, from the cache if they are there."""
    video = read_video(folder, noisy)
    cached = cache and cache / f"{folder.name}_{'noisy' if noisy else 'true'}.npy"
    if cached and cached.exists():
        return replace(video, feats=np.load(cached))
    feats, crops = [], []
    for crop in crops_of(video, folder):
        crops.append(crop)
        if len(crops) == BATCH:
            feats.append(embed(crops))
            crops = []
    if crops:
        feats.append(embed(crops))
    video = replace(video, feats=np.concatenate(feats))
    if cached:
        cached.parent.mkdir(parents=True, exist_ok=True)
        np.save(cached, video.feats)
    return video


# ---- tracking ------------------------------------------------------------------------------------


def tracklets(video: Video) -> np.ndarray:
    """Returns the tracklet of each person (n,)."""
    from person_search.search.tracklets import group_frames

    offsets = (video.frames - 1) / video.rate
    return group_frames(offsets, video.counts(), video.boxes, video.feats)


def place_only(video: Video) -> np.ndarray:
    """Like :func:`tracklets`, with equal embeddings."""
    return tracklets(replace(video, feats=np.full((len(video.frame), 1), 1.0)))


def byte_track(video: Video) -> np.ndarray:
    """Like :func:`tracklets`, with ByteTrack of supervision."""
    from supervision import ByteTrack, Detections

    step = np.median(np.diff(video.frames)) if len(video.frames) > 1 else 1
    rate = max(1, round(video.rate / step))
    tracker = ByteTrack(frame_rate=rate, minimum_consecutive_frames=1)
    numbers = -1 - np.arange(len(video.frame))  # persons that it drops are tracklets of their own
    for end, count in zip(np.cumsum(video.counts()), video.counts(), strict=True):
        rows = np.arange(end - count, end)
        found = tracker.update_with_detections(
            Detections(
                xyxy=video.boxes[rows].astype(np.float32).reshape(-1, 4),
                confidence=np.full(count, 0.9, np.float32),
                class_id=np.zeros(count, int),
                data={"row": rows},
            )
        )
        if len(found):
            numbers[found.data["row"]] = found.tracker_id
    return numbers


def across_cuts(videos: Sequence[Video], every: float) -> int:
    """Returns the number of tracklets that cross a cut between sequences joined to one video."""
    from person_search.search.tracklets import group_frames

    some = [video.sampled(every) for video in videos]
    counts = np.concatenate([video.counts() for video in some])
    sequence = np.repeat(np.arange(len(some)), [len(video.frame) for video in some])
    seconds, start = [], 0.0
    for video in some:
        own = (video.frames - video.frames[0]) / video.rate
        seconds.append(start + own)
        start = seconds[-1][-1] + (own[1] if len(own) > 1 else 1.0)
    boxes, feats = (np.concatenate([getattr(v, name) for v in some]) for name in ("boxes", "feats"))
    numbers = group_frames(np.concatenate(seconds), counts, boxes, feats)
    return len(np.unique(np.stack([numbers, sequence]), axis=1).T) - len(np.unique(numbers))


def idf1(truths: Sequence[Video], videos: Sequence[Video], numbers: Sequence[np.ndarray]) -> float:
    """Returns IDF1 over all sequences in percent."""
    import motmetrics

    accumulators = []
    for truth, video, given in zip(truths, videos, numbers, strict=True):
        accumulator = motmetrics.MOTAccumulator(auto_id=True)
        for frame in video.frames:
            real, found = truth.frame == frame, video.frame == frame
            distances = 1 - overlaps(truth.boxes[real], video.boxes[found])
            distances[distances > 0.5] = np.nan
            accumulator.update(truth.person[real], given[found], distances)
        accumulators.append(accumulator)
    summary = motmetrics.metrics.create().compute_many(
        accumulators, metrics=["idf1"], generate_overall=True
    )
    return 100 * float(summary["idf1"].iloc[-1])


def overlaps(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Returns IoU (n, m)."""
    corners = np.maximum(a[:, None, :2], b[:, :2]), np.minimum(a[:, None, 2:], b[:, 2:])
    shared = (corners[1] - corners[0]).clip(0).prod(axis=2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (a, b)]
    return shared / (areas[0][:, None] + areas[1] - shared)


# ---- search --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Gallery:
    """Persons of a protocol.

    Attributes:
        image: Image of each person (n,).
        person: Identity; "" if unknown (n,).
        boxes: Boxes and scores (n, 5).
        feats: Embeddings (n, D).
        tracklet: Tracklet (n,).
        queries: Rows of the queries.
    """

    image: np.ndarray
    person: np.ndarray
    boxes: np.ndarray
    feats: np.ndarray
    tracklet: np.ndarray
    queries: list[int]


def read_gallery(path: Path, videos: Sequence[Video]) -> Gallery:
    """Reads a protocol of true boxes, and groups the frames of its images.

    Raises:
        ValueError: If it names a person who is not in the sequences.
    """
    document = json.loads(path.read_text())
    places = {}
    for image in document["images"]:
        *_, sequence, _, name = Path(image["file_name"]).parts
        places[image["id"]] = sequence, int(Path(name).stem)
    used = 0
    selected, tracklet = [], []
    for video in videos:
        frames = sorted(frame for name, frame in places.values() if name == video.name)
        some = replace(video.select(np.isin(video.frame, frames)), frames=np.array(frames, int))
        selected.append(some)
        tracklet.append(tracklets(some) + used)
        used = int(tracklet[-1].max(initial=used - 1)) + 1
    sequences = np.concatenate([np.full(len(some.frame), some.name) for some in selected])
    frame = np.concatenate([some.frame for some in selected])
    boxes = np.concatenate([some.boxes for some in selected])
    rows: list[int] = []
    index_of: dict = {}
    for annotation in document["annotations"]:
        sequence, number = places[annotation["image_id"]]
        near = np.flatnonzero((sequences == sequence) & (frame == number))
        x, y, width, height = annotation["bbox"]
        ious = overlaps(np.array([[x, y, x + width, y + height]]), boxes[near])[0]
        if ious.max(initial=0) < 0.5:
            raise ValueError(f"'{path}': annotation {annotation['id']} is not in the sequences.")
        index_of[annotation["id"]] = len(rows)
        rows.append(near[int(ious.argmax())])
    return Gallery(
        np.array([one["image_id"] for one in document["annotations"]]),
        np.array([one.get("person_id") or "" for one in document["annotations"]]),
        np.column_stack([boxes, np.ones(len(boxes))])[rows],
        np.concatenate([some.feats for some in selected])[rows],
        np.concatenate(tracklet)[rows],
        [index_of[query["annotation_id"]] for query in document["queries"]],
    )


def search(gallery: Gallery, averaged: int) -> np.ndarray:
    """Returns mAP and top-1 over the persons, then over the tracklets (4,), in percent.

    Args:
        gallery: The protocol.
        averaged: Number of crops that are averaged per tracklet. 0: none; each person has its own
            embedding, and each tracklet the similarity of the most similar one.
    """
    from unittest.mock import patch

    from person_search.search.tracklets import Tracklets

    results = []
    for query in gallery.queries:
        keep = gallery.image != gallery.image[query]
        _, numbers = np.unique(gallery.tracklet[keep], return_inverse=True)
        positive = gallery.person[keep] == gallery.person[query]
        feats, query_feat = gallery.feats[keep], gallery.feats[query]
        if averaged:
            with patch("person_search.search.tracklets.BEST_CROPS", averaged):
                means = Tracklets(numbers, [gallery.boxes[keep]], [feats]).reid_feats
            of_tracklets = means @ query_feat
            of_persons = of_tracklets[numbers]
        else:
            of_persons = feats @ query_feat
            of_tracklets = np.full(numbers.max() + 1, -np.inf)
            np.maximum.at(of_tracklets, numbers, of_persons)
        shown = np.bincount(numbers, positive) > 0.5 * np.bincount(numbers)
        results.append([*precision(of_persons, positive), *precision(of_tracklets, shown)])
    return 100 * np.mean(results, axis=0)


def precision(sims: np.ndarray, positive: np.ndarray) -> tuple[float, float]:
    """Returns average precision and whether the first one is positive."""
    ranked = positive[np.argsort(-sims, kind="stable")]
    hits = np.flatnonzero(ranked)
    if not len(hits):
        return 0.0, 0.0
    return float(np.mean(np.arange(1, len(hits) + 1) / (hits + 1))), float(ranked[0])


# ---- tables --------------------------------------------------------------------------------------


def run_benchmark(args: argparse.Namespace) -> int:
    """Prints both tables."""
    for name in ("motmetrics", "supervision"):
        if importlib.util.find_spec(name) is None:
            raise ValueError(f"{name} is not installed: pip install motmetrics 'supervision<0.27'")
    folders = sorted(path.parent for path in args.mot.glob("*/seqinfo.ini"))
    if not folders:
        raise FileNotFoundError(f"--mot is '{args.mot}', which contains no */seqinfo.ini.")
    embed = classifier(args.backbone, args.weights)
    exact, noisy = (
        [embedded(args.cache, folder, errors, embed) for folder in folders]
        for errors in (False, True)
    )
    exact_colors, noisy_colors = (
        [embedded(None, folder, errors, color_histograms) for folder in folders]
        for errors in (False, True)
    )
    print("| IDF1 | " + " | ".join(
        f"{what}, {f'every {every:g} s' if every else 'all frames'}"
        for what in ("true boxes", "noisy boxes") for every in INTERVALS
    ) + " |")  # fmt: skip
    print("|---" * (1 + 2 * len(INTERVALS)) + "|")
    for name, track, inputs in (
        ("tracklets", tracklets, (exact, noisy)),
        ("colors", tracklets, (exact_colors, noisy_colors)),
        ("place only", place_only, (exact, noisy)),
        ("ByteTrack", byte_track, (exact, noisy)),
    ):
        row = []
        for videos in inputs:
            for every in INTERVALS:
                some = [video.sampled(every) for video in videos]
                truth = [video.sampled(every) for video in exact]
                row.append(f"{idf1(truth, some, [track(video) for video in some]):.1f}")
        print(f"| {name} | " + " | ".join(row) + " |", flush=True)
    row = [str(across_cuts(videos, every)) for videos in (exact, noisy) for every in INTERVALS]
    print("| tracklets across cuts | " + " | ".join(row) + " |")
    if args.protocol:
        gallery = read_gallery(args.protocol, exact)
        print(
            f"\n{len(gallery.person)} persons in {len(set(gallery.image.tolist()))} images, "
            f"{len(gallery.queries)} queries, {len(set(gallery.tracklet.tolist()))} tracklets.\n"
        )
        print("| averaged crops | persons: mAP | top-1 | tracklets: mAP | top-1 |")
        print("|---" * 5 + "|")
        for averaged in AVERAGED:
            name = "all" if averaged == AVERAGED[-1] else str(averaged or "none")
            row = [f"{value:.1f}" for value in search(gallery, averaged)]
            print(f"| {name} | " + " | ".join(row) + " |", flush=True)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns the exit status."""
    return run_program(run_benchmark, parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
