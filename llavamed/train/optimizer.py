"""Create AdamW, of torch or bitsandbytes, with learning rate and weight decay by model part."""

import torch

from llavamed.config.stage import Optimizer
from llavamed.errors import ConfigError
from llavamed.model.freeze import part_of
from llavamed.model.quantize import load_bitsandbytes


def make_optimizer(model: torch.nn.Module, settings: Optimizer) -> torch.optim.Optimizer:
    """Return the optimizer of the trainable parameters.

    Each parameter group holds its `peak_lr`; every step sets its `lr`. Only matrices have weight
    decay, since decaying biases and norms harms training and saves nothing. The groups of matrices
    come first. AdamW of torch is one fused kernel, which reads and writes each number once, and
    which can clip the gradient and leave out a step by tensors that the host does not read.

    Raises:
        ConfigError: The optimizer needs a package that is not installed.
    """
    members: dict[tuple[bool, float, float], list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            part, is_vector = part_of(name), parameter.ndim < 2
            decay = 0.0 if is_vector else settings.decay(part)
            members.setdefault((is_vector, settings.peak_lr(part), decay), []).append(parameter)
    groups = [
        {"params": parameters, "peak_lr": peak_lr, "weight_decay": decay}
        for (_, peak_lr, decay), parameters in sorted(members.items(), key=lambda item: item[0])
    ]
    if settings.name == "adamw":
        return torch.optim.AdamW(groups, lr=0.0, betas=settings.betas, eps=settings.eps, fused=True)
    bitsandbytes = load_bitsandbytes("optimizer.name=adamw_8bit")
    optimizer: torch.optim.Optimizer = bitsandbytes.optim.AdamW8bit(
        groups, lr=0.0, betas=settings.betas, eps=settings.eps
    )
    return optimizer


def check_other_workers(settings: Optimizer, num_workers: int) -> None:
    """Check that so many workers can load a state that another number of them has saved.

    Raises:
        ConfigError: Its moments have eight bits, in blocks that depend on the number of workers.
    """
    if settings.name == "adamw_8bit":
        raise ConfigError(
            "optimizer.name=adamw_8bit: its state cannot be distributed again among another "
            f"number of workers than saved it, now scaling.num_workers={num_workers}; "
            "use as many as saved it"
        )
