# SPDX-License-Identifier: Apache-2.0
"""Utilities: processes, logging, events, registry, and their errors."""

import json
import logging
import os
import pickle
import subprocess
import sys
import threading
from contextlib import nullcontext

import detectron2
import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage, JSONWriter, get_event_storage
from detectron2.utils.logger import log_every_n, log_first_n, setup_logger
from detectron2.utils.memory import retry_if_cuda_oom
from detectron2.utils.registry import Registry, locate
from detectron2.utils.serialize import PicklableWrapper
from detectron2.utils.testing import assert_instances_allclose


def test_one_process_needs_no_group():
    assert comm.get_world_size() == comm.get_local_size() == 1
    assert comm.get_rank() == comm.get_local_rank() == 0
    assert comm.is_main_process()
    assert comm.all_gather("x") == comm.gather("x") == ["x"]
    values = {"a": torch.tensor(1.0)}
    assert comm.reduce_dict(values) is values
    comm.synchronize()


TWO_PROCESSES = """
import json, os, sys
import detectron2
import torch
from detectron2.engine import create_ddp_model, launch
from detectron2.utils import comm

def main(folder):
    rank = comm.get_rank()
    torch.manual_seed(rank)
    model = create_ddp_model(torch.nn.Linear(2, 1), device_ids=None)
    model(torch.full((1, 2), float(rank))).sum().backward()
    reduced = comm.reduce_dict({"b": torch.tensor(float(rank)), "a": torch.tensor(2.0)})
    result = {
        "local": [comm.get_local_rank(), comm.get_local_size(), comm.get_world_size()],
        "gathered": comm.gather({"rank": rank}),
        "all": comm.all_gather(rank),
        "seeds": comm.all_gather(comm.shared_random_seed()),
        "reduced": {k: v.item() for k, v in reduced.items()} if rank == 0 else None,
        "grad": model.module.weight.grad.tolist(),
    }
    with open(f"{folder}/{rank}.json", "w") as f:
        json.dump(result, f)
    if not hasattr(detectron2, "__lite__"):
        os._exit(0)  # its launch() leaves threads of gloo, which may abort the process

if __name__ == "__main__":
    launch(main, 2, dist_url="auto", args=(sys.argv[1],))
"""


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="written for gloo")
def test_two_processes_exchange_objects_and_gradients(tmp_path):
    script = tmp_path / "two.py"
    script.write_text(TWO_PROCESSES)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, str(script), str(tmp_path)], env=environment, check=True)
    results = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert [r["local"] for r in results] == [[0, 2, 2], [1, 2, 2]]
    assert [r["gathered"] for r in results] == [[{"rank": 0}, {"rank": 1}], []]
    assert [r["all"] for r in results] == [[0, 1], [0, 1]]
    assert len({seed for r in results for seed in r["seeds"]}) == 1
    assert results[0]["reduced"] == {"a": 2.0, "b": 0.5}
    # Inputs 0 and 1: the mean gradient is one half on both ranks.
    assert [r["grad"] for r in results] == [[[0.5, 0.5]]] * 2


@pytest.mark.skipif(not hasattr(detectron2, "__lite__"), reason="Detectron2 keeps its groups")
@pytest.mark.skipif(torch.cuda.is_available(), reason="written for gloo")
@pytest.mark.parametrize("fails", [False, True])
def test_worker_ends_its_process_groups(fails, tmp_path):
    """Else threads of gloo abort one in about 30 processes while the interpreter ends."""
    from detectron2.engine.launch import _distributed_worker

    def main():
        assert comm.get_local_size() == 1 and torch.distributed.is_initialized()
        if fails:
            raise KeyError("of main")

    for meeting_point in ("first", "second"):
        url = f"file://{tmp_path / meeting_point}"
        with pytest.raises(KeyError, match="of main") if fails else nullcontext():
            _distributed_worker(0, main, 1, 1, 0, url, ())
        assert not torch.distributed.is_initialized()


def test_logger_writes_one_file_for_several_packages(tmp_path, capsys):
    first = setup_logger(str(tmp_path), name="utils_test_a", color=False)
    second = setup_logger(str(tmp_path), name="utils_test_b", color=False)
    assert setup_logger(str(tmp_path), name="utils_test_a", color=False) is first
    assert len(first.handlers) == 2
    first.info("one")
    second.warning("two")
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert [line.split("] ")[1] for line in lines] == [
        "utils_test_a INFO: one",
        "utils_test_b WARNING: two",
    ]
    other_rank = setup_logger(str(tmp_path / "x.log"), 3, name="utils_test_c")
    capsys.readouterr()
    other_rank.info("three")
    assert capsys.readouterr().out == ""
    assert "three" in (tmp_path / "x.log.rank3").read_text()


def test_log_first_and_every(caplog):
    with caplog.at_level(logging.INFO):
        for index in range(6):
            log_first_n(logging.INFO, f"first {index}", n=2, name="utils_counted")
            log_every_n(logging.INFO, f"every {index}", n=3, name="utils_counted")
            log_first_n(logging.INFO, "message", n=1, name="utils_counted", key="message")
    messages = [record.getMessage() for record in caplog.records]
    assert [m for m in messages if m.startswith("first")] == ["first 0", "first 1"]
    assert [m for m in messages if m.startswith("every")] == ["every 0", "every 3"]
    assert messages.count("message") == 1


def test_storage_belongs_to_its_block():
    with pytest.raises(AssertionError, match="EventStorage"):
        get_event_storage()
    with EventStorage() as outer:
        with EventStorage() as inner:
            assert get_event_storage() is inner
        assert get_event_storage() is outer
        outer.put_scalar("a", 1)
        with pytest.raises(AssertionError, match="smoothing_hint"):
            outer.put_scalar("a", 1, smoothing_hint=False)
        with pytest.raises(KeyError, match="No history metric available for b"):
            outer.history("b")


@pytest.mark.skipif(not hasattr(detectron2, "__lite__"), reason="Detectron2 may fail here")
def test_storage_is_read_while_a_thread_writes(tmp_path):
    errors = []
    with EventStorage() as storage:

        def write():
            for index in range(3000):
                storage.put_scalar(f"name{index}", index)

        thread = threading.Thread(target=write)
        writer = JSONWriter(str(tmp_path / "m.json"))
        thread.start()
        while thread.is_alive():
            try:
                writer.write()
                storage.step()
            except RuntimeError as e:
                errors.append(e)
        thread.join()
        writer.close()
    assert errors == []


def test_registry_and_locate():
    registry = Registry("THINGS")
    registry.register(Boxes)
    assert registry.get("Boxes") is Boxes
    with pytest.raises(KeyError, match="Cup"):
        registry.get("Cup")
    assert locate("detectron2.structures.Boxes") is Boxes
    assert locate("torch.optim.sgd.SGD") is torch.optim.SGD
    with pytest.raises(ImportError, match="no.such.thing"):
        locate("no.such.thing")


def test_lambdas_travel():
    wrapper = PicklableWrapper(lambda x: x + 1)
    assert pickle.loads(pickle.dumps(wrapper))(1) == 2
    assert PicklableWrapper(wrapper)(1) == 2


def test_seeds_make_all_generators_repeat():
    draws = []
    for _ in range(2):
        seed_all_rng(11)
        draws.append((torch.rand(2).tolist(), np.random.rand(2).tolist()))
    assert draws[0] == draws[1]


def test_oom_retry_passes_other_errors_on():
    calls = []

    @retry_if_cuda_oom
    def work(message):
        calls.append(message)
        raise RuntimeError(message)

    with pytest.raises(RuntimeError, match="shape"):
        work("shape mismatch")
    assert len(calls) == 1
    with pytest.raises(RuntimeError, match="CUDA out of memory"):
        work("CUDA out of memory. Tried to allocate")
    assert len(calls) == 4


def test_instances_are_compared_field_by_field():
    first = Instances((4, 4), scores=torch.tensor([0.5]), pred_boxes=Boxes(torch.ones(1, 4)))
    second = Instances((4, 4), scores=torch.tensor([0.6]), pred_boxes=Boxes(torch.ones(1, 4)))
    assert_instances_allclose(first, first)
    with pytest.raises(AssertionError, match="scores"):
        assert_instances_allclose(first, second)
    with pytest.raises(AssertionError, match="image_size"):
        assert_instances_allclose(first, Instances((4, 5)))


def test_environment_says_which_detectron2():
    text = collect_env_info()
    assert "torchvision" in text
    if hasattr(detectron2, "__lite__"):
        assert f"detectron2-lite {detectron2.__lite__}" in text
