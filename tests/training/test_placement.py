"""Features are placed, and get their gradient, as by transformers' own operation, bit for bit."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llavamed.model.loss import supervised_loss
from llavamed.model.placement import ImagePlaces, trust_image_tokens
from tests.training.test_attention import make_llava, pack


@given(
    st.lists(st.lists(st.booleans(), min_size=7, max_size=7), min_size=1, max_size=3),
    st.booleans(),
    st.booleans(),
)
def test_placing_is_masked_scatter_with_its_gradients(
    rows: list[list[bool]], learns_embeddings: bool, learns_features: bool
) -> None:
    places = torch.tensor(rows).unsqueeze(-1)
    found = []
    for kind in (torch.Tensor, ImagePlaces):
        random = torch.Generator().manual_seed(0)
        embeddings = torch.randn(len(rows), 7, 4, generator=random)
        features = torch.randn(int(places.sum()), 4, generator=random)
        weights = torch.randn(len(rows), 7, 4, generator=random)
        embeddings.requires_grad_(learns_embeddings)
        features.requires_grad_(learns_features)
        placed = embeddings.masked_scatter(places.as_subclass(kind), features)
        assert type(placed) is torch.Tensor
        if learns_embeddings or learns_features:
            (placed * weights).sum().backward()
        found.append((placed.detach(), embeddings.grad, features.grad))
    for theirs, ours in zip(*found, strict=True):
        assert (theirs is None) is (ours is None)
        assert theirs is None or torch.equal(theirs, ours)


@pytest.mark.parametrize("trained", ["multi_modal_projector", "language_model"])
def test_a_model_that_trusts_its_image_tokens_has_the_same_gradient(trained: str) -> None:
    found = []
    for trusts in (False, True):
        model: Any = make_llava("llama")
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(trained in name)
        if trusts:
            trust_image_tokens(model, model.config.image_token_id)
        loss = supervised_loss(model, pack())
        loss.backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        found.append([loss.detach(), *gradients])
    assert len(found[0]) > 1
    assert all(torch.equal(plain, own) for plain, own in zip(*found, strict=True))
