# SPDX-License-Identifier: Apache-2.0
"""benchmarks/benchmark_tracklets.py on drawn sequences; the trackers it compares are not needed."""

import json
from pathlib import Path

import benchmark_tracklets as tool
import cv2
import numpy as np
import pytest

COLORS = {1: (250, 0, 0), 2: (0, 250, 0), 3: (0, 0, 250)}


@pytest.fixture
def mot(tmp_path: Path) -> Path:
    """Two sequences of 8 frames in which two persons walk; each person has a color."""
    for name, persons in (("A", (1, 2)), ("B", (2, 3))):
        folder = tmp_path / "mot" / name
        (folder / "gt").mkdir(parents=True)
        (folder / "img1").mkdir()
        (folder / "seqinfo.ini").write_text("[Sequence]\nframeRate=4\nseqLength=8\n")
        lines = []
        for frame in range(1, 9):
            image = np.full((60, 160, 3), 128, np.uint8)
            for place, person in enumerate(persons):
                x = 10 + 80 * place + 3 * frame
                image[10:50, x : x + 20] = COLORS[person][::-1]
                lines.append(f"{frame},{person},{x},10,20,40,1,-1,-1,-1")
            cv2.imwrite(str(folder / "img1" / f"{frame:06d}.jpg"), image)
        (folder / "gt" / "gt.txt").write_text("\n".join(lines) + "\n")
    return tmp_path / "mot"


def mean_colors(crops) -> np.ndarray:
    colors = np.array([crop.mean(axis=(0, 1)) for crop in crops])
    return colors / np.linalg.norm(colors, axis=1, keepdims=True)


def videos(mot: Path, noisy: bool = False, cache: Path | None = None) -> list[tool.Video]:
    return [tool.embedded(cache, mot / name, noisy, mean_colors) for name in "AB"]


def test_sequences(mot, tmp_path) -> None:
    first, second = videos(mot, False, tmp_path / "cache")
    assert first.person.tolist() == [1, 2] * 8 and first.boxes[0].tolist() == [13, 10, 33, 50]
    assert np.allclose(first.feats[0], [1, 0, 0], atol=0.1), "RGB crops of the true boxes"
    assert np.array_equal(videos(mot, False, tmp_path / "cache")[1].feats, second.feats)
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == [
        "A_true.npy", "B_true.npy",
    ]  # fmt: skip
    sampled = first.sampled(0.5)
    assert sampled.frames.tolist() == [1, 3, 5, 7] and sampled.counts().tolist() == [2] * 4
    noisy = videos(mot, True)[0]
    assert 8 <= len(noisy.frame) < 16 and len(noisy.frames) == 8
    assert np.array_equal(noisy.boxes, videos(mot, True)[0].boxes)


def test_color_histograms(mot) -> None:
    crops = [np.full((9, 5, 3), color, np.uint8) for color in (*COLORS.values(), (250, 0, 0))]
    feats = tool.color_histograms(crops)
    assert np.allclose(feats @ feats.T, [[1, 0, 0, 1], [0, 1, 0, 0], [0, 0, 1, 0], [1, 0, 0, 1]])


def test_tracklets_and_cuts(mot) -> None:
    both = videos(mot)
    for video in both:
        assert tool.tracklets(video).tolist() == [0, 1] * 8
        assert tool.place_only(video).tolist() == [0, 1] * 8
    assert tool.across_cuts(both, 0.5) == 0
    blind = [tool.replace(video, feats=np.ones((16, 1))) for video in both]
    assert tool.across_cuts(blind, 0.5) == 2, "by place alone, the cut is not seen"


def test_search(mot, tmp_path) -> None:
    """Person 2 is searched in both sequences."""
    images, annotations = [], []
    for name in "AB":
        for frame in range(1, 9):
            images.append({"id": len(images), "file_name": f"x/{name}/img1/{frame:06d}.jpg"})
    for video in videos(mot):
        for frame, person, box in zip(video.frame, video.person, video.boxes, strict=True):
            annotations.append({
                "id": len(annotations), "image_id": int(frame) - 1 + 8 * (video.name == "B"),
                "bbox": [*box[:2], *(box[2:] - box[:2])], "person_id": str(person),
            })  # fmt: skip
    document = {"images": images, "annotations": annotations, "queries": [{"annotation_id": 1}]}
    path = tmp_path / "test.json"
    path.write_text(json.dumps(document))
    gallery = tool.read_gallery(path, videos(mot))
    assert len(gallery.person) == 32 and gallery.person[gallery.queries] == ["2"]
    assert sorted(set(gallery.tracklet.tolist())) == [0, 1, 2, 3]
    for averaged in (0, 1, 5):
        assert tool.search(gallery, averaged).tolist() == [100.0] * 4
    annotations[0]["bbox"] = [500, 10, 20, 40]
    path.write_text(json.dumps(document))
    with pytest.raises(ValueError, match="annotation 0 is not in the sequences"):
        tool.read_gallery(path, videos(mot))


def test_precision() -> None:
    sims = np.array([0.1, 0.9, 0.5, 0.7])
    assert tool.precision(sims, np.array([True, False, False, True])) == ((1 / 2 + 2 / 4) / 2, 0)
    assert tool.precision(sims, np.zeros(4, bool)) == (0, 0)


def test_a_missing_package(mot, monkeypatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="motmetrics is not installed: pip install"):
        tool.run_benchmark(tool.parse_args(["--mot", str(mot), "--weights", "none"]))
