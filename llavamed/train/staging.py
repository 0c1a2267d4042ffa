"""A copy of the state, for a thread to write while training goes on to change the state."""

import torch
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions


def host_stager() -> DefaultStager:
    """What copies a state to host memory, and takes the same memory again for the next one.

    New memory would be zeroed by the kernel page by page, which takes longer than the copy; beside
    a GPU it is pinned, so that the GPU copies on its own.
    """
    on_gpu = torch.cuda.is_available()
    return DefaultStager(
        StagingOptions(
            use_pinned_memory=on_gpu,
            use_non_blocking_copy=on_gpu,
            use_shared_memory=False,
            use_async_staging=False,
        )
    )
