# SPDX-License-Identifier: Apache-2.0
"""Config files, and classes built from a config."""

import pytest
from detectron2.config import (
    CfgNode,
    configurable,
    get_cfg,
    global_cfg,
    instantiate,
    set_global_cfg,
)


def write(folder, name, text):
    path = folder / name
    path.write_text(text)
    return str(path)


def test_get_cfg_gives_independent_copies():
    first, second = get_cfg(), get_cfg()
    first.MODEL.RPN.IN_FEATURES.append("res5")
    assert second.MODEL.RPN.IN_FEATURES == ["res4"]


def test_base_files_are_merged_first_and_relative_to_the_file(tmp_path):
    write(tmp_path, "base.yaml", "VERSION: 2\nSOLVER: {BASE_LR: 0.5, MAX_ITER: 7}\n")
    (tmp_path / "sub").mkdir()
    child = write(tmp_path, "sub/child.yaml", "_BASE_: ../base.yaml\nSOLVER: {MAX_ITER: 9}\n")
    cfg = get_cfg()
    cfg.merge_from_file(child)
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER, cfg.VERSION) == (0.5, 9, 2)


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("VERSION: 2\nNO_SUCH_KEY: 1\n", KeyError, "NO_SUCH_KEY"),
        ("VERSION: 2\nSOLVER: {MAX_ITER: many}\n", ValueError, "Type mismatch"),
        ("VERSION: 9\n", AssertionError, "VERSION 9"),
        ("VERSION: 1\n", ImportError, "VERSION 1 is not in detectron2-lite; install Detectron2"),
    ],
)
def test_bad_files_are_refused(tmp_path, text, error, words):
    with pytest.raises(error, match=words):
        get_cfg().merge_from_file(write(tmp_path, "bad.yaml", text))


def test_missing_file_is_named(tmp_path):
    with pytest.raises(AssertionError, match="nothing.yaml"):
        get_cfg().merge_from_file(str(tmp_path / "nothing.yaml"))


def test_file_without_version(tmp_path):
    cfg = get_cfg()
    cfg.merge_from_file(write(tmp_path, "a.yaml", "MODEL: {DEVICE: cpu}\n"))
    assert (cfg.MODEL.DEVICE, cfg.VERSION) == ("cpu", 2)


def test_global_cfg_is_shared():
    before = dict(global_cfg)
    try:
        set_global_cfg(CfgNode({"A": 5}))
        assert global_cfg.A == 5
    finally:
        global_cfg.clear()
        global_cfg.update(before)


class Box:
    @configurable
    def __init__(self, width, height=2):
        """A box."""
        self.size = (width, height)

    @classmethod
    def from_config(cls, cfg, height):
        return {"width": cfg.WIDTH, "height": height}


class TestConfigurable:
    cfg = CfgNode({"WIDTH": 3})

    def test_explicit_arguments(self):
        assert Box(1).size == (1, 2)
        assert Box.__init__.__doc__ == "A box."

    def test_config_as_position_or_keyword(self):
        assert Box(self.cfg, 5).size == (3, 5)
        assert Box(cfg=self.cfg, height=6).size == (3, 6)

    def test_keywords_override_the_config(self):
        assert Box(self.cfg, 5, width=9).size == (9, 5)

    def test_unknown_keyword_is_refused(self):
        with pytest.raises(TypeError, match="depth"):
            Box(self.cfg, 5, depth=1)

    def test_subclass_extends_the_arguments(self):
        class Lid(Box):
            @configurable
            def __init__(self, color, **kwargs):
                super().__init__(**kwargs)
                self.color = color

            @classmethod
            def from_config(cls, cfg, height):
                return {"color": "red", **super().from_config(cfg, height)}

        assert (Lid(self.cfg, 5).color, Lid(self.cfg, 5).size) == ("red", (3, 5))

    def test_classes_without_usable_from_config(self):
        class Without:
            @configurable
            def __init__(self, a=1):
                pass

        class NotClassmethod(Without):
            def from_config(self, cfg):
                pass

        class OtherName(Without):
            @classmethod
            def from_config(cls, config):
                return {}

        with pytest.raises(AttributeError, match="from_config"):
            Without(a=1)
        with pytest.raises(TypeError, match="classmethod"):
            NotClassmethod(a=1)
        with pytest.raises(TypeError, match="'cfg'"):
            OtherName(self.cfg)

    def test_function(self):
        @configurable(from_config=lambda cfg, b: {"a": cfg.WIDTH, "b": b})
        def pair(a, b, c=0):
            return a, b, c

        assert pair(1, 2) == (1, 2, 0)
        assert pair(self.cfg, b=4, c=5) == (3, 4, 5)
        with pytest.raises(TypeError):
            pair(self.cfg)


def test_instantiate_calls_inner_targets_first():
    description = {
        "_target_": "collections.OrderedDict",
        "a": 3,
        "b": [{"_target_": "builtins.dict", "c": 1}, 2],
    }
    assert instantiate(description) == {"a": 3, "b": [{"c": 1}, 2]}
    untouched = {"no": "target"}
    assert instantiate(untouched) is untouched
    with pytest.raises(AssertionError, match="_target_"):
        instantiate({"_target_": 5})
