# SPDX-License-Identifier: Apache-2.0
"""Compiled code that uses ``Instances`` gives the same results."""

import pytest
import torch
from detectron2.export import scripting_with_instances
from detectron2.export.torchscript_patch import patch_builtin_len, patch_instances
from detectron2.structures import Boxes, Instances
from detectron2.utils.testing import convert_scripted_instances

FIELDS = {"pred_boxes": Boxes, "scores": torch.Tensor}


class KeepBest(torch.nn.Module):
    def forward(self, x: Instances, threshold: float):
        kept = x[x.scores > threshold]
        if len(kept) == 0:
            return x.cat([x, x])
        return kept


def make_instances():
    return Instances((4, 5), pred_boxes=Boxes(torch.rand(3, 4)), scores=torch.tensor([0.1, 0.5, 1]))


@pytest.mark.parametrize(("threshold", "length"), [(0.3, 2), (2.0, 6)])
def test_compiled_is_the_same(threshold, length):
    model = KeepBest().eval()
    with patch_instances(FIELDS) as scripted_class:
        compiled = torch.jit.script(model)
        result = compiled(scripted_class.from_instances(make_instances()), threshold)
        assert len(result) == length and result.has("scores")
        converted = convert_scripted_instances(result)
    assert set(converted.get_fields()) == {"pred_boxes", "scores"}
    assert converted.image_size == (4, 5)


def test_nothing_is_left_behind():
    with patch_instances(FIELDS):
        pass
    assert not hasattr(Instances, "_jit_override_qualname")
    with pytest.raises(Exception, match="Instances|not supported|image_size"):
        torch.jit.script(KeepBest())


def test_fields_must_be_declared():
    with patch_instances({"scores": torch.Tensor}) as scripted_class:
        with pytest.raises(AssertionError, match="pred_boxes"):
            scripted_class.from_instances(make_instances())
        empty = scripted_class((1, 2))
        assert not empty.has("scores")
        with pytest.raises(NotImplementedError):
            len(empty)


def test_only_models_in_eval_mode_are_compiled():
    with pytest.raises(AssertionError, match="evaluation mode"):
        scripting_with_instances(KeepBest(), FIELDS)
    compiled = scripting_with_instances(KeepBest().eval(), FIELDS)
    assert "threshold" in compiled.code


def test_len_is_patched_for_a_while():
    import detectron2.modeling.roi_heads.fast_rcnn as module

    with patch_builtin_len():
        assert module.len(Boxes(torch.rand(3, 4))) == 3
    assert not hasattr(module, "len")
