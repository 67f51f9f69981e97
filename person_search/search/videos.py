# SPDX-License-Identifier: Apache-2.0
"""Frames of video files, through OpenCV: every so many seconds, and single ones again later."""

import os
from collections.abc import Container, Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from person_search.data import BadImageError

# What is wrong with a video is said once and by us. OpenCV reads this when it first needs FFmpeg,
# on whose scale -8 is silence.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")
COMPLETE = 0.98
"""Videos whose readable frames are a smaller share of those announced are said to stop early; many
containers announce a few frames too many."""


@dataclass(frozen=True)
class VideoFrame:
    """A frame that was sampled.

    Args:
        index: of the frame, from 0. offset: seconds from the start of the video.
        image: (H, W, 3) uint8 RGB; None for a frame that the caller has already.
    """

    index: int
    offset: float
    picture: np.ndarray | None


@dataclass
class VideoState:
    """What is known of a video once it has been read.

    Args:
        frames: that could be read.
        error: why it ended before its announced end; "" otherwise.
    """

    frames: int = 0
    error: str = ""


def sample_video(
    path: str | os.PathLike,
    every: float,
    have: Container[int] = (),
    state: VideoState | None = None,
) -> Iterator[VideoFrame]:
    """Yields the first frame, and then the first one of each interval of ``every`` seconds.

    The choice depends on the video alone: an interrupted run chooses the same frames again.

    Args:
        path: of the video.
        every: seconds.
        have: frames that need not be unpacked.
        state: is filled in while reading.

    Raises:
        BadImageError: it cannot be opened or has no readable frame.
    """
    state = state if state is not None else VideoState()
    capture = _open(path)
    try:
        announced = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        fps = capture.get(cv2.CAP_PROP_FPS)
        interval = -1
        while capture.grab():
            index, state.frames = state.frames, state.frames + 1
            offset = _offset(capture, index, fps)
            if int(offset / every + 1e-6) <= interval:
                continue
            interval = int(offset / every + 1e-6)
            if index in have:
                yield VideoFrame(index, offset, None)
                continue
            good, picture = capture.retrieve()
            if not good:
                break
            yield VideoFrame(index, offset, np.ascontiguousarray(picture[:, :, ::-1]))
        if not state.frames:
            raise BadImageError(f"the video '{path}' has no readable frame.")
        if announced > 0 and state.frames < COMPLETE * announced:
            state.error = f"stops after {state.frames} of {announced} frames"
    finally:
        capture.release()


def count_samples(path: str | os.PathLike, every: float) -> int:
    """About how many frames will be sampled; for a progress bar."""
    try:
        capture = _open(path)
    except BadImageError:
        return 1
    frames, fps = capture.get(cv2.CAP_PROP_FRAME_COUNT), capture.get(cv2.CAP_PROP_FPS)
    capture.release()
    seconds = frames / fps if fps > 0 and frames > 0 else 0
    return max(1, min(int(frames), int(seconds / every) + 1))


def read_frame(path: str | os.PathLike, index: int) -> np.ndarray:
    """One frame as (H, W, 3) uint8 RGB.

    Jumping into a compressed video may land beside the frame, so the place is checked; if it is not
    the right one, the video is read from its start.

    Raises:
        FileNotFoundError: no such file. BadImageError: no such frame.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"there is no video '{path}'.")
    capture = _open(path)
    try:
        capture.set(cv2.CAP_PROP_POS_FRAMES, index)
        there = round(capture.get(cv2.CAP_PROP_POS_FRAMES)) == index
        if not there or not capture.grab():
            capture.release()
            capture = _open(path)
            if not all(capture.grab() for _ in range(index + 1)):
                raise BadImageError(f"the video '{path}' has no frame {index}.")
        good, picture = capture.retrieve()
        if not good:
            raise BadImageError(f"frame {index} of the video '{path}' is damaged.")
        return np.ascontiguousarray(picture[:, :, ::-1])
    finally:
        capture.release()


def _open(path: str | os.PathLike) -> cv2.VideoCapture:
    """Opens a video; OpenCV's own message about one that it cannot open is left out."""
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        capture = cv2.VideoCapture(os.fspath(path), cv2.CAP_FFMPEG)
    finally:
        cv2.utils.logging.setLogLevel(level)
    if not capture.isOpened():
        empty = os.path.isfile(path) and os.path.getsize(path) == 0
        reason = "the file is empty (0 bytes)" if empty else "it is damaged, or is none"
        raise BadImageError(f"cannot read the video '{path}': {reason}.")
    return capture


def _offset(capture: cv2.VideoCapture, index: int, fps: float) -> float:
    """Seconds from the start of the frame that was grabbed last."""
    seconds = capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
    if seconds > 0 or index == 0:
        return max(seconds, 0.0)
    return index / fps if fps > 0 else float(index)  # files without time stamps
