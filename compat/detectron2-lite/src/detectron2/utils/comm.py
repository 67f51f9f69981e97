# SPDX-License-Identifier: Apache-2.0
"""Questions and exchanges between the processes of one training job.

Every function has a meaning without `torch.distributed` too: one process, rank 0. Objects travel
by pickle over a gloo group, so results and log records need not be tensors.
"""

import functools
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

# The processes of this machine. `launch` fills it through create_local_process_group.
_LOCAL_PROCESS_GROUP = None
_MISSING_LOCAL_PG_ERROR = (
    "The process group of this machine does not exist yet. Start processes with detectron2's "
    "`launch()`, or call detectron2.utils.comm.create_local_process_group() in every process "
    "right after torch.distributed.init_process_group()."
)


def _initialized() -> bool:
    return dist.is_available() and dist.is_initialized()


def get_world_size() -> int:
    """Number of processes in the job."""
    return dist.get_world_size() if _initialized() else 1


def get_rank() -> int:
    """Index of this process in the job."""
    return dist.get_rank() if _initialized() else 0


@functools.cache
def create_local_process_group(num_workers_per_machine: int) -> None:
    """Make one group per machine, each holding that machine's processes.

    Args:
        num_workers_per_machine: processes on every machine; ranks are numbered machine by machine.
    """
    global _LOCAL_PROCESS_GROUP
    assert _LOCAL_PROCESS_GROUP is None
    world_size = get_world_size()
    if world_size % num_workers_per_machine:
        raise ValueError(
            f"num_workers_per_machine={num_workers_per_machine} does not divide the world size "
            f"{world_size}"
        )
    machine = get_rank() // num_workers_per_machine
    # new_group is collective: every process has to create every group, its own or not.
    for index in range(world_size // num_workers_per_machine):
        first = index * num_workers_per_machine
        group = dist.new_group(list(range(first, first + num_workers_per_machine)))
        if index == machine:
            _LOCAL_PROCESS_GROUP = group


def get_local_process_group():
    """The group of this machine's processes, for collectives such as synchronized batch norm."""
    assert _LOCAL_PROCESS_GROUP is not None, _MISSING_LOCAL_PG_ERROR
    return _LOCAL_PROCESS_GROUP


def get_local_rank() -> int:
    """Index of this process on its machine."""
    if not _initialized():
        return 0
    return dist.get_rank(group=get_local_process_group())


def get_local_size() -> int:
    """Number of processes on this machine."""
    if not _initialized():
        return 1
    return dist.get_world_size(group=get_local_process_group())


def is_main_process() -> bool:
    """Whether this process has rank 0."""
    return get_rank() == 0


def synchronize() -> None:
    """Wait until every process has arrived here."""
    if get_world_size() == 1:
        return
    # Naming the device keeps NCCL from guessing it by rank; gloo takes none.
    is_nccl = dist.get_backend() == dist.Backend.NCCL
    dist.barrier(device_ids=[torch.cuda.current_device()] if is_nccl else None)


@functools.cache
def _get_global_gloo_group():
    """A group of all ranks that can move CPU data; the world itself unless that runs on NCCL."""
    moves_cpu_data = dist.get_backend() != dist.Backend.NCCL
    return dist.group.WORLD if moves_cpu_data else dist.new_group(backend="gloo")


def _exchange_group(group):
    """(group to talk in, number of its members); (None, 1) when there is nobody to talk to."""
    if get_world_size() == 1:
        return None, 1
    group = _get_global_gloo_group() if group is None else group
    return group, dist.get_world_size(group)


def all_gather(data: Any, group=None) -> list:
    """Give every process the objects of all.

    Args:
        data: this process's object; it must be picklable.
        group: members of the exchange; all ranks by default.

    Returns:
        The objects in the order of the ranks; `[data]` in a single process.
    """
    group, size = _exchange_group(group)
    if size == 1:
        return [data]
    received = [None] * size
    dist.all_gather_object(received, data, group=group)
    return received


def gather(data: Any, dst: int = 0, group=None) -> list:
    """Give process `dst` the objects of all.

    Args:
        data: this process's object; it must be picklable.
        dst: rank of the receiver.
        group: members of the exchange; all ranks by default.

    Returns:
        The objects in the order of the ranks on `dst`, an empty list elsewhere.
    """
    group, size = _exchange_group(group)
    if size == 1:
        return [data]
    if dist.get_rank(group=group) != dst:
        dist.gather_object(data, None, dst=dst, group=group)
        return []
    received = [None] * size
    dist.gather_object(data, received, dst=dst, group=group)
    return received


def shared_random_seed() -> int:
    """A random number below 2**31 on which all processes agree (rank 0's draw)."""
    return all_gather(np.random.randint(2**31))[0]


def reduce_dict(input_dict: dict, average: bool = True) -> dict:
    """Combine scalar tensors of all processes, key by key, on rank 0.

    Args:
        input_dict: name -> scalar tensor, the same names in every process.
        average: divide the sums by the number of processes.

    Returns:
        name -> reduced tensor on rank 0; on the other ranks the values mean nothing.
    """
    if get_world_size() == 1:
        return input_dict
    # Ranks may have filled their dictionaries in different orders.
    names = sorted(input_dict)
    with torch.no_grad():
        values = torch.stack([input_dict[name] for name in names])
        dist.reduce(values, dst=0)
        if average and get_rank() == 0:
            values /= get_world_size()
    return dict(zip(names, values, strict=True))
