# SPDX-License-Identifier: Apache-2.0
"""Frames of video files, read with OpenCV: sampled at an interval, or one by its index."""

import os
import tempfile
from collections.abc import Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import cv2
import numpy as np

from person_search.data import BadImageError

# Problems are reported once, by us. OpenCV reads this when it first uses FFmpeg; -8 is silent.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")
COMPLETE = 0.98
"""A video with a smaller share of readable frames is reported as truncated; many containers
announce a few frames too many."""


@dataclass(frozen=True)
class VideoFrame:
    """A sampled frame.

    Attributes:
        index: Index of the frame, from 0.
        offset: Seconds from the start of the video.
        image: Array (H, W, 3) uint8 RGB; None if the caller already has the frame.
    """

    index: int
    offset: float
    image: np.ndarray | None


@dataclass
class VideoState:
    """Result of reading a video.

    Attributes:
        frames: Number of readable frames.
        error: Why the video ended before its announced end; "" otherwise.
    """

    frames: int = 0
    error: str = ""


def sample_video(
    path: str | os.PathLike,
    every: float,
    have: Container[int] = (),
    state: VideoState | None = None,
) -> Iterator[VideoFrame]:
    """Yields the first frame of each interval of ``every`` seconds.

    The choice depends on the video alone: an interrupted run chooses the same frames again.

    Args:
        path: Video file.
        every: Interval in seconds.
        have: Indices of frames that need not be decoded.
        state: Updated while reading.

    Raises:
        BadImageError: If the video cannot be opened or has no readable frame.
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
            good, image = capture.retrieve()
            if not good:
                break
            yield VideoFrame(index, offset, np.ascontiguousarray(image[:, :, ::-1]))
        if not state.frames:
            raise BadImageError(f"the video '{path}' has no readable frame.")
        if announced > 0 and state.frames < COMPLETE * announced:
            state.error = f"stops after {state.frames} of {announced} frames"
    finally:
        capture.release()


def count_samples(path: str | os.PathLike, every: float) -> int:
    """Estimates the number of sampled frames, for a progress bar."""
    try:
        capture = _open(path)
    except BadImageError:
        return 1
    frames, fps = capture.get(cv2.CAP_PROP_FRAME_COUNT), capture.get(cv2.CAP_PROP_FPS)
    capture.release()
    seconds = frames / fps if fps > 0 and frames > 0 else 0
    return max(1, min(int(frames), int(seconds / every) + 1))


def read_frame(path: str | os.PathLike, index: int) -> np.ndarray:
    """Reads one frame.

    Seeking in a compressed video may miss the frame; if the position is wrong after seeking, the
    video is read from its start.

    Args:
        path: Video file.
        index: Index of the frame, from 0.

    Returns:
        Array (H, W, 3) uint8 RGB.

    Raises:
        FileNotFoundError: If the file does not exist.
        BadImageError: If the video has no such frame, or the frame is damaged.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"the video '{path}' does not exist.")
    capture = _open(path)
    try:
        capture.set(cv2.CAP_PROP_POS_FRAMES, index)
        there = round(capture.get(cv2.CAP_PROP_POS_FRAMES)) == index
        if not there or not capture.grab():
            capture.release()
            capture = _open(path)
            if not all(capture.grab() for _ in range(index + 1)):
                raise BadImageError(f"the video '{path}' has no frame {index}.")
        good, image = capture.retrieve()
        if not good:
            raise BadImageError(f"frame {index} of the video '{path}' is damaged.")
        return np.ascontiguousarray(image[:, :, ::-1])
    finally:
        capture.release()


def _open(path: str | os.PathLike) -> cv2.VideoCapture:
    """Opens a video without the messages of OpenCV."""
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        with _openable(os.fspath(path)) as name:
            capture = cv2.VideoCapture(name, cv2.CAP_FFMPEG)
    finally:
        cv2.utils.logging.setLogLevel(level)
    if not capture.isOpened():
        empty = os.path.isfile(path) and os.path.getsize(path) == 0
        reason = "the file is empty (0 bytes)" if empty else "it is damaged or not a video"
        raise BadImageError(f"cannot read the video '{path}': {reason}.")
    return capture


@contextmanager
def _openable(path: str) -> Iterator[str]:
    """Yields a name that OpenCV accepts: a link if the path is not UTF-8, else the path itself."""
    try:
        path.encode()
    except UnicodeEncodeError:
        with tempfile.TemporaryDirectory() as folder:
            link = os.path.join(folder, "video")
            os.symlink(os.path.abspath(path), link)
            yield link
    else:
        yield path


def _offset(capture: cv2.VideoCapture, index: int, fps: float) -> float:
    """Returns the time of the last grabbed frame in seconds from the start."""
    seconds = capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
    if seconds > 0 or index == 0:
        return max(seconds, 0.0)
    return index / fps if fps > 0 else float(index)  # files without time stamps
