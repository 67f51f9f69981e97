# SPDX-License-Identifier: Apache-2.0
"""The whole of DiffPS on the tiny Stable Diffusion folder."""

import pytest
from diffps_model_tiny import IMAGE_SIZE, tiny_model, training_input

from person_search.testing import PersonSearchModelTests


@pytest.fixture(scope="class")
def folder(request, tiny_sd):
    request.cls.folder = tiny_sd


@pytest.mark.usefixtures("folder")
class TestDiffPS(PersonSearchModelTests):
    """All that a person search model must keep to."""

    image_size = IMAGE_SIZE

    def build(self, seed):
        return tiny_model(self.folder, seed)

    def training_input(self, persons):
        return training_input(persons)
