# SPDX-License-Identifier: Apache-2.0
"""Frames of real video files, whole and cut short."""

import numpy as np
import pytest
from galleries import FPS, write_video

from person_search.data import BadImageError
from person_search.search.videos import VideoState, count_samples, read_frame, sample_video


@pytest.mark.parametrize("suffix", [".mp4", ".avi"])
def test_frames_every_so_often(suffix, tmp_path) -> None:
    path = write_video(tmp_path / f"v{suffix}")
    state = VideoState()
    frames = list(sample_video(path, 1.0, state=state))
    assert [frame.index for frame in frames] == [0, 10, 20]
    assert [frame.offset for frame in frames] == pytest.approx([0, 1, 2], abs=0.01)
    for frame in frames:
        assert frame.image.shape == (48, 64, 3)
        assert abs(frame.image.mean() - 8 * frame.index) < 4
        assert np.array_equal(read_frame(path, frame.index), frame.image)
    assert state == VideoState(30, "") and count_samples(path, 1.0) == 3 + (30 % FPS == 0)
    assert len(list(sample_video(path, 0.01))) == 30, "not more than there are"
    again = list(sample_video(path, 1.0, have={0, 20}))
    assert [frame.image is None for frame in again] == [True, False, True]


def test_video_that_stops_in_the_middle(tmp_path) -> None:
    path = write_video(tmp_path / "v.avi", 90)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 2 // 3])
    state = VideoState()
    frames = list(sample_video(path, 0.5, state=state))
    assert 2 <= len(frames) < 17
    assert state.error == f"stops after {state.frames} of 90 frames" and state.frames < 85


@pytest.mark.parametrize("content", [b"", b"no video\n", None])
def test_no_video(content, tmp_path, capfd) -> None:
    path = tmp_path / "v.mp4"
    if content is None:  # the index of an mp4 file stands at its end
        whole = write_video(path).read_bytes()
        content = whole[: len(whole) // 2]
    path.write_bytes(content)
    reason = "it is damaged or not a video" if content else r"the file is empty \(0 bytes\)"
    with pytest.raises(BadImageError, match=rf"cannot read the video '.*v\.mp4': {reason}"):
        list(sample_video(path, 1.0))
    assert count_samples(path, 1.0) == 1
    assert capfd.readouterr().err == "", "nothing from OpenCV and FFmpeg besides"


def test_frame_that_is_not_there(tmp_path) -> None:
    path = write_video(tmp_path / "v.mp4", 5)
    with pytest.raises(BadImageError, match="has no frame 7"):
        read_frame(path, 7)
    with pytest.raises(FileNotFoundError, match="absent.mp4' does not exist"):
        read_frame(tmp_path / "absent.mp4", 0)
