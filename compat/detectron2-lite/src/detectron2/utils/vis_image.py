# SPDX-License-Identifier: Apache-2.0
"""The canvas of the visualizer and its view of masks; used through `utils.visualizer`."""

import matplotlib.figure
import numpy as np
import pycocotools.mask as mask_util
from matplotlib.backends.backend_agg import FigureCanvasAgg


def _create_text_labels(classes, scores, class_names, is_crowd=None) -> list[str] | None:
    """Labels such as "cat 87%|crowd", of what is given.

    Args:
        classes: class indices, or None.
        scores: numbers in [0, 1], or None.
        class_names: names by index, or None to print the index.
        is_crowd: flags, or None.
    """
    labels = None
    if classes is not None:
        labels = [class_names[c] if class_names else str(c) for c in classes]
    if scores is not None:
        percents = [f"{score * 100:.0f}%" for score in scores]
        if labels is None:
            labels = percents
        else:
            labels = [f"{name} {p}" for name, p in zip(labels, percents, strict=True)]
    if labels is not None and is_crowd is not None:
        labels = [
            name + ("|crowd" if crowd else "") for name, crowd in zip(labels, is_crowd, strict=True)
        ]
    return labels


class VisImage:
    """An image under matplotlib shapes, whose coordinates are the image's pixels."""

    def __init__(self, img, scale: float = 1.0):
        """
        Args:
            img: (H, W, 3) RGB array in [0, 255].
            scale: size of the output relative to the image.
        """
        self.img = img
        self.scale = scale
        self.height, self.width = img.shape[:2]
        self._setup_figure(img)

    def _setup_figure(self, img):
        # Not through pyplot: figures it knows are kept until they are closed.
        self.fig = matplotlib.figure.Figure(frameon=False)
        self.dpi = self.fig.get_dpi()
        # The small addition keeps rounding from losing a row or a column.
        pixels = self.scale * np.array([self.width, self.height]) + 0.01
        self.fig.set_size_inches(pixels / self.dpi)
        self.canvas = FigureCanvasAgg(self.fig)
        self.ax = self.fig.add_axes((0, 0, 1, 1))
        self.ax.set_axis_off()
        self.reset_image(img)

    def reset_image(self, img):
        """Replace the image below the shapes; same size."""
        img = img.astype("uint8")
        self.ax.imshow(img, extent=(0, self.width, self.height, 0), interpolation="nearest")

    def save(self, filepath):
        """Write the image to a file; its ending decides on the format."""
        self.fig.savefig(filepath)

    def get_image(self) -> np.ndarray:
        """The image as (H * scale, W * scale, 3) uint8 RGB."""
        buffer, (width, height) = self.canvas.print_to_buffer()
        rgba = np.frombuffer(buffer, dtype="uint8").reshape(height, width, 4)
        return np.ascontiguousarray(rgba[:, :, :3])


class GenericMask:
    """One instance's mask, from polygons, a COCO run length code, or an array.

    Attributes:
        mask: (height, width) uint8 array of 0 and 1.
        polygons: outlines [x0, y0, x1, y1, ...].
    """

    def __init__(self, mask_or_polygons, height: int, width: int):
        self.height, self.width = height, width
        self._mask = self._polygons = self._has_holes = None
        value = mask_or_polygons
        if isinstance(value, dict):
            if isinstance(value["counts"], list):
                value = mask_util.frPyObjects(value, *value["size"])
            self._mask = mask_util.decode(value)
            shape = self._mask.shape
        elif isinstance(value, list):
            self._polygons = [np.asarray(polygon).reshape(-1) for polygon in value]
            self._has_holes = False  # the annotation format has none
            shape = (height, width)
        elif isinstance(value, np.ndarray) and value.ndim == 2:
            self._mask = value.astype("uint8")
            shape = self._mask.shape
        else:
            raise ValueError(
                f"A mask of type {type(value)}: expected a list of polygons, a run length code "
                "or a 2-d array"
            )
        if shape != (height, width):
            raise ValueError(f"A mask of shape {shape} for an image of shape {(height, width)}")

    @property
    def mask(self) -> np.ndarray:
        drawn = self._mask
        if drawn is None:
            drawn = self._mask = self.polygons_to_mask(self._polygons)
        return drawn

    @property
    def polygons(self) -> list[np.ndarray]:
        self._trace_outlines()
        return self._polygons

    @property
    def has_holes(self) -> bool:
        self._trace_outlines()
        return self._has_holes

    def _trace_outlines(self) -> None:
        """Finds polygons and holes of a mask, the first time they are asked for."""
        if self._polygons is None:
            self._polygons, self._has_holes = self.mask_to_polygons(self._mask)

    def mask_to_polygons(self, mask) -> tuple[list[np.ndarray], bool]:
        """Outlines of a mask, and whether some of them bound holes."""
        import cv2

        contours, hierarchy = cv2.findContours(
            np.ascontiguousarray(mask, dtype=np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE
        )
        if hierarchy is None:
            return [], False
        has_holes = bool((hierarchy.reshape(-1, 4)[:, 3] >= 0).any())
        # Three points at least; and OpenCV counts pixel centers, polygons their corners.
        outlines = [contour.reshape(-1) + 0.5 for contour in contours if len(contour) >= 3]
        return outlines, has_holes

    def polygons_to_mask(self, polygons) -> np.ndarray:
        """Fill polygons; (height, width) uint8."""
        rle = mask_util.merge(mask_util.frPyObjects(polygons, self.height, self.width))
        return mask_util.decode(rle)

    def area(self) -> int:
        """Number of pixels."""
        return int(self.mask.sum())

    def bbox(self) -> np.ndarray:
        """The surrounding box, XYXY."""
        rows, columns = np.nonzero(self.mask)
        if not len(rows):
            return np.zeros(4)
        return np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], dtype=float)
