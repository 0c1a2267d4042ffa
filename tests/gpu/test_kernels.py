"""On a GPU, no kernel is further from float32 than the plain ones in bfloat16, give or take."""

import pytest
import torch

from llavamed.config.engine import Kernels
from llavamed.data.feed.loader import Batch
from llavamed.model.kernels import use_kernels
from llavamed.model.loss import supervised_loss
from tests.training.test_attention import make_llava, pack


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("kernels", ["compile", "liger", "varlen"])
@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen3"])
def test_kernels_compute_what_plain_ones_do(kind: str, kernels: str) -> None:
    device = torch.device("cuda")
    batch = pack().to(device)
    exact = loss_and_gradient(make_llava(kind, head_dim=16).to(device), batch)
    apart = []
    for wanted in (Kernels(), Kernels.model_validate({kernels: True})):
        model = make_llava(kind, head_dim=16).to(device, torch.bfloat16)
        use_kernels(model, wanted, device)
        apart.append((loss_and_gradient(model, batch) - exact).norm() / exact.norm())
    assert apart[1] < 2 * apart[0]


def loss_and_gradient(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    loss = supervised_loss(model, batch)
    loss.backward()
    gradients = [p.grad.flatten().float() for p in model.parameters() if p.grad is not None]
    return torch.cat([loss.detach().flatten(), *gradients])
