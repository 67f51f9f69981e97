# SPDX-License-Identifier: Apache-2.0
"""DiffPS on a pretended accelerator: no tensor on the wrong device, and few waits for it."""

import pytest
import torch
from detectron2.utils.events import EventStorage
from diffps_model_tiny import tiny_model, training_input
from pretended_device import PretendedDevice


@pytest.mark.parametrize("amp", [False, True])
@pytest.mark.parametrize(("training", "most"), [(True, 74), (False, 38)])
def test_tensors_are_on_the_device(tiny_sd, amp, training, most) -> None:
    """``most`` is for two images."""
    model = tiny_model(tiny_sd).train(training)
    inputs = [training_input(), training_input(persons=1, seed=1)]
    with PretendedDevice(model, *model.backbone._frozen) as device, EventStorage():
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            model(inputs)
    assert 0 < sum(device.waits.values()) <= most, device.waits
