# SPDX-License-Identifier: Apache-2.0
"""Communication between the processes of a training job.

All functions also work without ``torch.distributed``, as a single process with rank 0. Objects are
pickled and sent over a gloo group.
"""

import functools
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

# The group of the processes on this machine, from create_local_process_group.
_LOCAL_PROCESS_GROUP = None
_MISSING_LOCAL_PG_ERROR = (
    "The local process group does not exist. Use detectron2's launch() to start processes, or call "
    "detectron2.utils.comm.create_local_process_group() in every process after "
    "torch.distributed.init_process_group()."
)


def _initialized() -> bool:
    return dist.is_available() and dist.is_initialized()


def get_world_size() -> int:
    """Returns the number of processes of the job."""
    return dist.get_world_size() if _initialized() else 1


def get_rank() -> int:
    """Returns the rank of this process in the job."""
    return dist.get_rank() if _initialized() else 0


@functools.cache
def create_local_process_group(num_workers_per_machine: int) -> None:
    """Creates the process group of each machine.

    Args:
        num_workers_per_machine: Number of processes on every machine. The ranks of a machine must
            be contiguous.
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
    # new_group is collective: every process must create every group
    for index in range(world_size // num_workers_per_machine):
        first = index * num_workers_per_machine
        group = dist.new_group(list(range(first, first + num_workers_per_machine)))
        if index == machine:
            _LOCAL_PROCESS_GROUP = group


def destroy_process_groups() -> None:
    """Destroys all process groups, so that their threads end before the interpreter does.

    Only :func:`detectron2.engine.launch` calls it; Detectron2 has no such function.
    """
    global _LOCAL_PROCESS_GROUP
    _LOCAL_PROCESS_GROUP = None
    create_local_process_group.cache_clear()
    _get_global_gloo_group.cache_clear()
    dist.destroy_process_group()


def get_local_process_group():
    """Returns the group of the processes on this machine."""
    assert _LOCAL_PROCESS_GROUP is not None, _MISSING_LOCAL_PG_ERROR
    return _LOCAL_PROCESS_GROUP


def get_local_rank() -> int:
    """Returns the rank of this process on its machine."""
    if not _initialized():
        return 0
    return dist.get_rank(group=get_local_process_group())


def get_local_size() -> int:
    """Returns the number of processes on this machine."""
    if not _initialized():
        return 1
    return dist.get_world_size(group=get_local_process_group())


def is_main_process() -> bool:
    """Returns whether this process has rank 0."""
    return get_rank() == 0


def synchronize() -> None:
    """Waits for all processes."""
    if get_world_size() == 1:
        return
    # NCCL would guess the device from the rank; gloo does not accept devices
    is_nccl = dist.get_backend() == dist.Backend.NCCL
    dist.barrier(device_ids=[torch.cuda.current_device()] if is_nccl else None)


@functools.cache
def _get_global_gloo_group():
    """Returns a group of all ranks for CPU data: the default group unless it uses NCCL."""
    is_nccl = dist.get_backend() == dist.Backend.NCCL
    return dist.new_group(backend="gloo") if is_nccl else dist.group.WORLD


def all_gather(data: Any, group=None) -> list:
    """Gathers an object of each process in all processes.

    Args:
        data: Picklable object of this process.
        group: Process group, by default all processes.

    Returns:
        List of the objects in the order of the ranks.
    """
    if get_world_size() == 1:
        return [data]
    group = _get_global_gloo_group() if group is None else group
    received = [None] * dist.get_world_size(group)
    dist.all_gather_object(received, data, group=group)
    return received


def gather(data: Any, dst: int = 0, group=None) -> list:
    """Gathers an object of each process in one process.

    Args:
        data: Picklable object of this process.
        dst: Rank of the process that receives the objects.
        group: Process group, by default all processes.

    Returns:
        On rank ``dst``, list of the objects in the order of the ranks; otherwise an empty list.
    """
    if get_world_size() == 1:
        return [data]
    group = _get_global_gloo_group() if group is None else group
    is_receiver = dist.get_rank(group=group) == dst
    received = [None] * dist.get_world_size(group) if is_receiver else None
    dist.gather_object(data, received, dst=dst, group=group)
    return received or []


def shared_random_seed() -> int:
    """Returns a random number below 2**31, drawn by rank 0 for all processes."""
    return all_gather(np.random.randint(2**31))[0]


def reduce_dict(input_dict: dict, average: bool = True) -> dict:
    """Reduces scalar tensors of all processes, key by key, to rank 0.

    Args:
        input_dict: Dict from name to scalar tensor, with the same names in all processes.
        average: Whether to average instead of to sum.

    Returns:
        Dict from name to reduced tensor on rank 0; on other ranks the values are undefined.
    """
    if get_world_size() == 1:
        return input_dict
    # the order of the names may differ between processes
    names = sorted(input_dict)
    with torch.no_grad():
        values = torch.stack([input_dict[name] for name in names])
        dist.reduce(values, dst=0)
        if average and get_rank() == 0:
            values /= get_world_size()
    return dict(zip(names, values, strict=True))
