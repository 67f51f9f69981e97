# SPDX-License-Identifier: Apache-2.0
"""PSDiff on a pretended accelerator: no tensor on the wrong device, and few waits for it."""

import pytest
import torch
from detectron2.utils.events import EventStorage
from pretended_device import PretendedDevice
from psdiff_tiny import image_input, tiny_model, training_input


@pytest.mark.parametrize("amp", [False, True])
@pytest.mark.parametrize(("training", "most"), [(True, 13), (False, 36)])
def test_tensors_are_on_the_device(amp, training, most) -> None:
    """``most`` is for two images, and in testing three steps."""
    model = tiny_model().train(training)
    inputs = [training_input()] * 2 if training else [image_input(queries=2), image_input(1)]
    with PretendedDevice(model) as device, EventStorage():
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            model(inputs)
    assert 0 < sum(device.waits.values()) <= most, device.waits


def test_tensors_on_two_devices_are_found() -> None:
    layer = torch.nn.Linear(2, 3)
    with PretendedDevice(layer) as device:
        x = torch.ones(4, 2)
        with pytest.raises(RuntimeError, match="linear: tensors on two devices"):
            layer(x)
        y = layer(x.to(layer.weight.device))
        assert not device.waits and float(y.detach().sum()) != 0
        with pytest.raises(RuntimeError, match="add: tensors on two devices"):
            y + torch.zeros(3)
    assert device.waits == {"__float__": 1}
