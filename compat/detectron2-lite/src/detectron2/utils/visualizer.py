# SPDX-License-Identifier: Apache-2.0
"""Drawing of boxes, labels and masks on images."""

import colorsys
import math
from enum import Enum, unique

import matplotlib.colors as mplc
import matplotlib.lines as mpl_lines
import matplotlib.patches as mpl_patches
import numpy as np
import torch
from detectron2.data import MetadataCatalog
from detectron2.structures import BoxMode

from .colormap import random_color
from .vis_image import GenericMask, VisImage, _create_text_labels

__all__ = ["ColorMode", "VisImage", "Visualizer"]

_SMALL_OBJECT_AREA_THRESH = 1000
_OFF_WHITE = (1.0, 1.0, 240.0 / 255)


@unique
class ColorMode(Enum):
    """How instances get their colors."""

    IMAGE = 0
    """A random color for each instance."""
    SEGMENTATION = 1
    """One color for each class, from the metadata's `thing_colors`."""
    IMAGE_BW = 2
    """As IMAGE, on an image that is gray outside the masks."""


def _areas(boxes, masks, num_instances: int) -> np.ndarray:
    """(N,) sizes to order instances by: of the boxes, else of the masks, else all alike."""
    if boxes is not None:
        width, height = (boxes[:, 2:] - boxes[:, :2]).T
        return width * height
    if masks is not None:
        return np.array([mask.area() for mask in masks])
    return np.zeros(num_instances)


def _legible(color) -> np.ndarray:
    """The color as (3,) RGB, with no channel dark and at least one bright."""
    rgb = np.maximum(mplc.to_rgb(color), 0.2)
    brightest = rgb.argmax()
    rgb[brightest] = max(rgb[brightest], 0.8)
    return rgb


class Visualizer:
    """Draws on one image: single shapes, predictions of a model, or a data set's annotations.

    Every `draw_*` method returns the `VisImage`, and adds to what was drawn before.
    """

    def __init__(
        self,
        img_rgb,
        metadata=None,
        scale: float = 1.0,
        instance_mode: ColorMode = ColorMode.IMAGE,
        font_size_scale: float = 1.0,
    ):
        """
        Args:
            img_rgb: (H, W, 3) RGB array in [0, 255].
            metadata: of the data set, for `thing_classes` and `thing_colors`.
            scale: size of the output relative to the image.
            instance_mode: how instances get their colors.
            font_size_scale: factor on the size of the text.
        """
        self.img = np.asarray(img_rgb).clip(0, 255).astype(np.uint8)
        self.metadata = MetadataCatalog.get("__nonexist__") if metadata is None else metadata
        self.output = VisImage(self.img, scale=scale)
        self.cpu_device = torch.device("cpu")
        diagonal = math.sqrt(self.output.height * self.output.width)
        self._default_font_size = max(diagonal // 90, 10 // scale) * font_size_scale
        self._instance_mode = instance_mode

    # Whole results

    def draw_instance_predictions(self, predictions, jittering: bool = True) -> VisImage:
        """Draw a model's output for one image.

        Args:
            predictions: Instances with some of pred_boxes, scores, pred_classes, pred_masks.
            jittering: in mode SEGMENTATION, vary the class's color from instance to instance.
        """
        fields = predictions.get_fields()
        boxes, scores, classes, masks = (
            fields.get(name) for name in ("pred_boxes", "scores", "pred_classes", "pred_masks")
        )
        classes = None if classes is None else classes.tolist()
        masks = None if masks is None else [np.asarray(mask) for mask in masks.cpu()]
        labels = _create_text_labels(classes, scores, self.metadata.get("thing_classes", None))

        colors, alpha = self._class_colors(classes, jittering), 0.8
        if colors is None:
            alpha = 0.5
        if self._instance_mode == ColorMode.IMAGE_BW:
            visible = None
            if masks is not None:
                visible = np.any(masks, axis=0) if masks else None
            self.output.reset_image(self._create_grayscale_image(visible))
            alpha = 0.3
        return self.overlay_instances(
            masks=masks, boxes=boxes, labels=labels, assigned_colors=colors, alpha=alpha
        )

    def draw_dataset_dict(self, dic) -> VisImage:
        """Draw the annotations of one record in Detectron2's data set format."""
        annotations = dic.get("annotations", None)
        if not annotations:
            return self.output
        masks = None
        if "segmentation" in annotations[0]:
            masks = [annotation["segmentation"] for annotation in annotations]
        boxes = [
            BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYXY_ABS)
            for annotation in annotations
        ]
        classes = [annotation["category_id"] for annotation in annotations]
        labels = _create_text_labels(
            classes,
            scores=None,
            class_names=self.metadata.get("thing_classes", None),
            is_crowd=[annotation.get("iscrowd", 0) for annotation in annotations],
        )
        return self.overlay_instances(
            labels=labels,
            boxes=boxes,
            masks=masks,
            assigned_colors=self._class_colors(classes, jittering=True),
        )

    def overlay_instances(
        self,
        *,
        boxes=None,
        labels=None,
        masks=None,
        keypoints=None,
        assigned_colors=None,
        alpha: float = 0.5,
    ) -> VisImage:
        """Draw instances, large ones first so that small ones stay visible.

        Args:
            boxes: Boxes, or an (N, 4) array, XYXY in pixels.
            labels: N texts.
            masks: N masks: lists of polygons, run length codes, or arrays.
            keypoints: not supported here.
            assigned_colors: N colors in any of matplotlib's notations; random by default.
            alpha: opacity of masks.
        """
        if keypoints is not None:
            raise NotImplementedError("detectron2-lite does not draw keypoints; Detectron2 does")
        boxes = None if boxes is None else self._convert_boxes(boxes)
        masks = None if masks is None else self._convert_masks(masks)
        given = [len(x) for x in (boxes, masks, labels, assigned_colors) if x is not None]
        if not given or given[0] == 0:
            return self.output
        num_instances = given[0]
        assert set(given) == {num_instances}, f"Numbers of boxes, masks, labels, colors: {given}"
        if assigned_colors is None:
            assigned_colors = [random_color(rgb=True, maximum=1) for _ in range(num_instances)]

        for index in np.argsort(-_areas(boxes, masks, num_instances)):
            color = assigned_colors[index]
            if boxes is not None:
                self.draw_box(boxes[index], edge_color=color)
            if masks is not None:
                for polygon in masks[index].polygons:
                    self.draw_polygon(polygon.reshape(-1, 2), color, alpha=alpha)
            if labels is not None:
                self._label_instance(
                    labels[index],
                    None if boxes is None else boxes[index],
                    None if masks is None else masks[index],
                    color,
                )
        return self.output

    def _label_instance(self, label: str, box, mask, color) -> None:
        """Write one label: at a box's top left corner, or in the middle of a mask."""
        if box is not None:
            x0, y0, x1, y1 = box
            position, alignment = (x0, y0), "left"
            scale = self.output.scale
            # On a small box the text would hide what it names.
            if (x1 - x0) * (y1 - y0) < _SMALL_OBJECT_AREA_THRESH * scale or y1 - y0 < 40 * scale:
                position = (x1, y0) if y1 >= self.output.height - 5 else (x0, y1)
        elif mask is not None and mask.area():
            _, y0, _, y1 = mask.bbox()
            position = np.median(mask.mask.nonzero(), axis=1)[::-1]
            alignment = "center"
        else:
            return
        ratio = (y1 - y0) / math.sqrt(self.output.height * self.output.width)
        size = np.clip((ratio - 0.02) / 0.08 + 1, 1.2, 2) * 0.5 * self._default_font_size
        self.draw_text(
            label,
            position,
            color=self._change_color_brightness(color, brightness_factor=0.7),
            horizontal_alignment=alignment,
            font_size=size,
        )

    # Single shapes

    def draw_text(
        self,
        text,
        position,
        *,
        font_size=None,
        color="g",
        horizontal_alignment="center",
        rotation=0,
    ) -> VisImage:
        """Write a text on a dark ground.

        Args:
            text: the text.
            position: (x, y) of its upper edge.
            font_size: size in points at scale 1; chosen by the image's size when None.
            color: its color; made brighter if it would be hard to read.
            horizontal_alignment: what `position` means: "left", "center" or "right".
            rotation: degrees, counter-clockwise.
        """
        size = self._default_font_size if font_size is None else font_size
        self.output.ax.text(
            *position,
            text,
            size=size * self.output.scale,
            family="sans-serif",
            bbox={"facecolor": "black", "alpha": 0.8, "pad": 0.7, "edgecolor": "none"},
            verticalalignment="top",
            horizontalalignment=horizontal_alignment,
            color=_legible(color),
            zorder=10,
            rotation=rotation,
        )
        return self.output

    def draw_box(self, box_coord, alpha=0.5, edge_color="g", line_style="-") -> VisImage:
        """Draw the outline of a box, XYXY in pixels."""
        x0, y0, x1, y1 = (float(value) for value in box_coord)
        self.output.ax.add_patch(
            mpl_patches.Rectangle(
                (x0, y0),
                x1 - x0,
                y1 - y0,
                fill=False,
                edgecolor=edge_color,
                linewidth=max(self._default_font_size / 4, 1) * self.output.scale,
                alpha=alpha,
                linestyle=line_style,
            )
        )
        return self.output

    def draw_circle(self, circle_coord, color, radius=3) -> VisImage:
        """Draw a filled circle around (x, y)."""
        self.output.ax.add_patch(mpl_patches.Circle(circle_coord, radius=radius, color=color))
        return self.output

    def draw_line(self, x_data, y_data, color, linestyle="-", linewidth=None) -> VisImage:
        """Draw a line through the points with these coordinates."""
        width = self._default_font_size / 3 if linewidth is None else linewidth
        width = max(width, 1)
        self.output.ax.add_line(
            mpl_lines.Line2D(
                x_data,
                y_data,
                linewidth=width * self.output.scale,
                color=color,
                linestyle=linestyle,
            )
        )
        return self.output

    def draw_polygon(self, segment, color, edge_color=None, alpha=0.5) -> VisImage:
        """Draw a filled polygon.

        Args:
            segment: (N, 2) corners.
            color: color of the inside.
            edge_color: color of the outline; a darker or brighter `color` when None.
            alpha: opacity of the inside.
        """
        if edge_color is None:
            # Where the inside is nearly opaque, the outline has to stand out by its tone.
            factor = -0.7 if alpha > 0.8 else 0.0
            edge_color = self._change_color_brightness(color, factor) if factor else color
        self.output.ax.add_patch(
            mpl_patches.Polygon(
                segment,
                fill=True,
                facecolor=(*mplc.to_rgb(color), alpha),
                edgecolor=(*mplc.to_rgb(edge_color), 1),
                linewidth=max(self._default_font_size // 15 * self.output.scale, 1),
            )
        )
        return self.output

    def draw_binary_mask(
        self,
        binary_mask,
        color=None,
        *,
        edge_color=None,
        text=None,
        alpha=0.5,
        area_threshold=10,
    ) -> VisImage:
        """Draw a mask.

        Args:
            binary_mask: (H, W) array of 0 and 1.
            color: its color; random when None.
            edge_color: color of the outline.
            text: written into its largest part.
            alpha: opacity.
            area_threshold: parts with fewer pixels are left out.
        """
        color = random_color(rgb=True, maximum=1) if color is None else color
        color = mplc.to_rgb(color)
        shape = binary_mask.shape[:2]
        mask = GenericMask(np.asarray(binary_mask, dtype="uint8"), *shape)
        drawn = False
        if mask.has_holes:
            # Polygons would fill the holes: lay a transparent image over the image instead.
            overlay = np.zeros((*shape, 4))
            overlay[..., :3] = color
            overlay[..., 3] = mask.mask * alpha
            self._draw_overlay(overlay)
            drawn = True
        else:
            for polygon in mask.polygons:
                points = polygon.reshape(-1, 2)
                if GenericMask([polygon], *shape).area() >= (area_threshold or 0):
                    self.draw_polygon(points, color=color, edge_color=edge_color, alpha=alpha)
                    drawn = True
        if text is not None and drawn:
            self._draw_text_in_mask(binary_mask, text, color)
        return self.output

    def draw_soft_mask(self, soft_mask, color=None, *, text=None, alpha=0.5) -> VisImage:
        """Draw a mask of opacities.

        Args:
            soft_mask: (H, W) array in [0, 1], a factor on `alpha`.
            color: its color; random when None.
            text: written where the mask exceeds one half.
            alpha: largest opacity.
        """
        color = random_color(rgb=True, maximum=1) if color is None else color
        color = mplc.to_rgb(color)
        overlay = np.zeros((*soft_mask.shape[:2], 4))
        overlay[..., :3] = color
        overlay[..., 3] = soft_mask * alpha
        self._draw_overlay(overlay)
        if text is not None:
            self._draw_text_in_mask(soft_mask > 0.5, text, color)
        return self.output

    def get_output(self) -> VisImage:
        """What was drawn so far."""
        return self.output

    # Helpers

    def _draw_overlay(self, rgba: np.ndarray) -> None:
        extent = (0, self.output.width, self.output.height, 0)
        self.output.ax.imshow(rgba, extent=extent, interpolation="nearest")

    def _draw_text_in_mask(self, binary_mask, text, color) -> None:
        """Write a text into the middle of the largest connected part of a mask."""
        import cv2

        mask = np.ascontiguousarray(binary_mask, dtype="uint8")
        count, parts, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
        if count <= 1:
            return
        largest = 1 + np.argmax(stats[1:, cv2.CC_STAT_AREA])
        center = np.median((parts == largest).nonzero(), axis=1)[::-1]
        bright = self._change_color_brightness(color, brightness_factor=0.7)
        self.draw_text(text, center, color=bright)

    def _class_colors(self, classes, jittering: bool):
        """Colors from the metadata in mode SEGMENTATION; None lets each instance have its own."""
        palette = self.metadata.get("thing_colors", None)
        if self._instance_mode != ColorMode.SEGMENTATION or not palette or classes is None:
            return None
        colors = [[value / 255 for value in palette[c]] for c in classes]
        return [self._jitter(color) for color in colors] if jittering else colors

    def _create_grayscale_image(self, mask=None) -> np.ndarray:
        """The image in gray, except where `mask` is set."""
        gray = self.img.astype("float32").mean(axis=2, keepdims=True).repeat(3, axis=2)
        if mask is not None:
            gray[mask] = self.img[mask]
        return gray

    def _jitter(self, color) -> tuple:
        """A color near `color`."""
        offset = np.random.rand(3)
        offset = offset / np.linalg.norm(offset) * 0.5
        return tuple(np.clip(np.asarray(mplc.to_rgb(color)) + offset, 0.0, 1.0))

    def _change_color_brightness(self, color, brightness_factor: float) -> tuple:
        """Brighten (factor up to 1) or darken (down to -1) a color."""
        assert -1.0 <= brightness_factor <= 1.0
        hue, lightness, saturation = colorsys.rgb_to_hls(*mplc.to_rgb(color))
        lightness = min(max(lightness * (1 + brightness_factor), 0.0), 1.0)
        return tuple(np.clip(colorsys.hls_to_rgb(hue, lightness, saturation), 0.0, 1.0))

    def _convert_boxes(self, boxes) -> np.ndarray:
        """Boxes of any kind as an (N, 4) array."""
        if hasattr(boxes, "tensor"):
            boxes = boxes.tensor
        boxes = np.asarray(boxes.detach().cpu() if isinstance(boxes, torch.Tensor) else boxes)
        if boxes.size and boxes.shape[-1] != 4:
            raise NotImplementedError(
                f"Boxes of shape {boxes.shape}: detectron2-lite draws (N, 4) boxes; rotated ones "
                "need Detectron2"
            )
        return boxes.reshape(-1, 4)

    def _convert_masks(self, masks_or_polygons) -> list[GenericMask]:
        """Masks of any kind as `GenericMask`."""
        masks = masks_or_polygons
        if hasattr(masks, "polygons"):
            masks = masks.polygons
        elif hasattr(masks, "tensor"):
            masks = masks.tensor.cpu().numpy()
        elif isinstance(masks, torch.Tensor):
            masks = masks.cpu().numpy()
        size = (self.output.height, self.output.width)
        return [m if isinstance(m, GenericMask) else GenericMask(m, *size) for m in masks]
