# SPDX-License-Identifier: Apache-2.0
"""Transforms and augmentations: boxes follow the pixels."""

import numpy as np
import pytest
from detectron2.data import transforms as T
from hypothesis import given
from hypothesis import strategies as st


def image_with_box(x0, y0, x1, y1, height=40, width=60):
    """A black image with a white box, and the box."""
    image = np.zeros((height, width, 3), dtype=np.uint8)
    image[y0:y1, x0:x1] = 255
    return image, np.array([[x0, y0, x1, y1]], dtype=float)


def box_in(image):
    """The box around what is white."""
    rows, columns = np.nonzero(image[:, :, 0] > 127)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


@pytest.mark.parametrize(
    "augmentation",
    [
        T.RandomFlip(1.0),
        T.RandomFlip(1.0, horizontal=False, vertical=True),
        T.Resize((80, 30)),
        T.ResizeShortestEdge(20),
        T.ResizeScale(2.0, 2.0, 40, 60),
        T.FixedSizeCrop((50, 70), pad_value=0),
    ],
    ids=str,
)
def test_boxes_follow_the_pixels(augmentation):
    np.random.seed(0)
    image, boxes = image_with_box(16, 8, 40, 32)
    aug_input = T.AugInput(image, boxes=boxes)
    augmentation(aug_input)
    np.testing.assert_allclose(aug_input.boxes[0], box_in(aug_input.image), atol=1.0)


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 200), st.integers(1, 400))
def test_shortest_edge_keeps_its_promise(height, width, short, longest):
    new_height, new_width = T.ResizeShortestEdge.get_output_shape(height, width, short, longest)
    assert max(new_height, new_width) <= max(longest, 1)
    if max(new_height, new_width) < longest - 1:
        assert min(new_height, new_width) == short


@given(
    st.sampled_from(["relative", "relative_range", "absolute", "absolute_range"]),
    st.integers(5, 50),
    st.integers(5, 50),
)
def test_crops_fit(crop_type, height, width):
    size = (0.3, 0.9) if crop_type.startswith("relative") else (4, 30)
    crop = T.RandomCrop(crop_type, size).get_transform(np.zeros((height, width)))
    assert 0 <= crop.x0 and crop.x0 + crop.w <= width
    assert 0 <= crop.y0 and crop.y0 + crop.h <= height


def test_resize_of_floats_and_bytes_agree():
    y, x = np.mgrid[0:20, 0:30]
    ramp = (x * 4 + y * 3).astype(np.uint8)
    transform = T.ResizeTransform(20, 30, 40, 60)
    as_bytes = transform.apply_image(ramp).astype(float)
    as_floats = transform.apply_image(ramp.astype(np.float32))
    assert abs(as_bytes - as_floats).max() <= 1
    with pytest.raises(AssertionError, match="20, 30"):
        transform.apply_image(ramp.T)


def test_list_applies_in_order_and_returns_all():
    image, boxes = image_with_box(0, 0, 10, 10)
    aug_input = T.AugInput(image, boxes=boxes)
    transforms = aug_input.apply_augmentations([T.Resize((80, 120)), T.HFlipTransform(120)])
    assert aug_input.boxes.tolist() == [[100, 0, 120, 20]]
    np.testing.assert_allclose(transforms.apply_box(boxes), aug_input.boxes)


def test_apply_augmentations_takes_an_image():
    image, transforms = T.apply_augmentations([T.Resize(8)], np.zeros((4, 4), dtype=np.uint8))
    assert image.shape == (8, 8) and isinstance(transforms, T.TransformList)


def test_arguments_come_by_name():
    seen = []

    class Look(T.Augmentation):
        def get_transform(self, image, boxes):
            seen.append((image.shape, len(boxes)))
            return T.NoOpTransform()

    image, boxes = image_with_box(0, 0, 10, 10)
    Look()(T.AugInput(image, boxes=boxes))
    assert seen == [((40, 60, 3), 1)]

    class Other(T.Augmentation):
        def get_transform(self, image, depth):
            return T.NoOpTransform()

    class Anything(T.Augmentation):
        def get_transform(self, image, **kwargs):
            return T.NoOpTransform()

    class Nothing(T.Augmentation):
        def get_transform(self, image):
            return None

    for augmentation, error in (
        (Other(), AttributeError),
        (Anything(), TypeError),
        (Nothing(), AssertionError),
    ):
        with pytest.raises(error, match=type(augmentation).__name__):
            augmentation(T.AugInput(image))


def test_subclass_of_aug_input_carries_more():
    class WithPoints(T.AugInput):
        points = np.array([[1.0, 2.0]])

        def transform(self, tfm):
            super().transform(tfm)
            self.points = tfm.apply_coords(self.points)

    aug_input = WithPoints(np.zeros((4, 10), dtype=np.uint8))
    T.RandomFlip(1.0)(aug_input)
    assert aug_input.points.tolist() == [[9, 2]]


def test_text_shows_what_differs_from_the_defaults():
    assert str(T.RandomFlip()) == "RandomFlip()"
    assert str(T.RandomFlip(0.25)) == "RandomFlip(prob=0.25)"
    crop = T.RandomCrop("absolute", (3, 4))
    assert str(crop) == "RandomCrop(crop_type='absolute', crop_size=(3, 4))"
    assert str(T.AugmentationList([crop])) == f"AugmentationList[{crop}]"


def test_color_keeps_boxes_and_bytes():
    image, boxes = image_with_box(5, 5, 20, 20)
    image[:, :, 1] = 100
    for augmentation in (
        T.RandomBrightness(0.5, 0.5),
        T.RandomContrast(0.5, 0.5),
        T.RandomSaturation(0.0, 0.0),
        T.RandomLighting(1.0),
    ):
        aug_input = T.AugInput(image, boxes=boxes)
        augmentation(aug_input)
        assert aug_input.image.dtype == np.uint8 and aug_input.boxes.tolist() == boxes.tolist()
    aug_input = T.AugInput(image)
    T.RandomBrightness(0.5, 0.5)(aug_input)
    assert (aug_input.image == image // 2).all() or abs(aug_input.image - image / 2).max() <= 1
    T.RandomSaturation(0.0, 0.0)(aug_input)
    assert (aug_input.image[..., 0] == aug_input.image[..., 2]).all()


def test_refusals():
    with pytest.raises(ValueError, match="two RandomFlips"):
        T.RandomFlip(vertical=True)
    with pytest.raises(ValueError, match="flips one axis"):
        T.RandomFlip(horizontal=False)
    with pytest.raises(AssertionError):
        T.RandomApply(T.NoOpTransform(), prob=1.5)
    with pytest.raises(AssertionError, match="NumPy"):
        T.AugInput([[1, 2]])
    with pytest.raises(AttributeError, match="MinIoURandomCrop.*install Detectron2"):
        T.MinIoURandomCrop()


def test_rotation_by_a_right_angle():
    pytest.importorskip("cv2")
    image, boxes = image_with_box(10, 5, 30, 15)
    rotation = T.RotationTransform(40, 60, 90)
    assert box_in(rotation.apply_image(image)) == rotation.apply_box(boxes)[0].round().tolist()
    np.testing.assert_array_equal(
        rotation.inverse().apply_image(rotation.apply_image(image)), image
    )
