"""MET: the joint loss, what is exit-specific, and the graph term against its definition."""

from __future__ import annotations

import pickle
from copy import deepcopy

import pytest
import torch
from peft import get_peft_model
from timm.models.crossvit import CrossVit
from timm.models.vision_transformer import VisionTransformer
from torch.nn import functional as F

from vitune.errors import BackboneError, VituneError
from vitune.methods import MethodLayer, get_method, method_penalty
from vitune.methods.met import ExitingBlock, METConfig
from vitune.objectives import graph_penalty
from vitune.ops import exit_adapter


def network(**arguments: object) -> torch.nn.Module:
    model = VisionTransformer(
        img_size=32, patch_size=8, embed_dim=32, depth=6, num_heads=2, num_classes=5
    )
    return get_peft_model(model, get_method("met").configure(model, {"rank": 4, **arguments}))


def perturb(model: torch.nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))


def test_the_graph_term_is_the_sum_over_pairs() -> None:
    features, labels = torch.randn(9, 6).double(), torch.tensor([0, 1, 1, 2, 0, 1, 2, 2, 3])
    unit = F.normalize(features, dim=-1)
    same = (labels[:, None] == labels).double()
    adjacency = same / same.sum(1, keepdim=True)
    expected = (adjacency * torch.cdist(unit, unit).square()).sum() / 9
    assert graph_penalty(features, labels).item() == pytest.approx(expected.item(), rel=1e-5)
    shares = F.one_hot(labels).double()
    assert graph_penalty(features, shares).item() == pytest.approx(expected.item(), rel=1e-5)
    laplacian = torch.diag(adjacency.sum(1)) - adjacency
    trace = 2 * torch.trace(unit.T @ laplacian @ unit) / 9
    assert trace.item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_graph_term_pulls_one_class_together() -> None:
    labels = torch.tensor([0, 0, 1, 1])
    apart = torch.tensor([[1.0, 0], [0, 1], [1, 0], [0, 1]])
    together = torch.tensor([[1.0, 0], [2, 0], [0, 1], [0, 3]])
    assert graph_penalty(together, labels).item() == pytest.approx(0, abs=1e-6)
    assert graph_penalty(apart, labels).item() == pytest.approx(1.0)


def test_the_joint_loss_is_the_sum_over_exits() -> None:
    model = network(exits=(2, 4), graph=0.3, exit_weight=0.5)
    perturb(model)
    images, labels = torch.randn(6, 3, 32, 32), torch.randint(5, (6,))
    model.train()
    model(images)
    loss = method_penalty(model, 0.0, labels)
    assert method_penalty(model, 0.0, labels) is None, "one pass, one loss"
    layers = [m for m in model.modules() if isinstance(m, MethodLayer)]
    tokens: dict[int, torch.Tensor] = {}
    for layer in layers:
        layer.register_forward_hook(lambda layer, _, y: tokens.__setitem__(layer.site.block + 1, y))
    model.eval()
    model(images)
    shared = layers[0].shared["default"]
    expected = torch.zeros(())
    for end in (2, 4):
        read = exit_adapter(
            tokens[end][:, 0], shared.down, shared.up,
            getattr(shared, f"scale_{end}"), getattr(shared, f"shift_{end}"),
        )  # fmt: skip
        z = model.get_base_model().norm(read)
        logits = z @ getattr(shared, f"head_{end}").T + getattr(shared, f"bias_{end}")
        expected = expected + 0.5 * F.cross_entropy(logits, labels)
        expected = expected + 0.3 * graph_penalty(z, labels)
        head = next(la for la in layers if la.site.block + 1 == end).exit_head("default")
        assert torch.allclose(head(tokens[end]), logits, atol=1e-6)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)


def test_exit_heads_are_sent_and_copied_with_their_network() -> None:
    model = network(exits=1).eval()
    perturb(model)
    layer = next(m for m in model.modules() if isinstance(m, ExitingBlock))
    head, tokens = layer.exit_head("default"), torch.randn(2, 17, 32)
    assert head is not None
    sent, (_, apart) = pickle.loads(pickle.dumps(head)), deepcopy((model, head))
    assert torch.equal(sent(tokens), head(tokens))
    for parameter in model.parameters():
        parameter.data.zero_()
    assert torch.equal(sent(tokens), apart(tokens)) and not head(tokens).any()


def test_each_segment_has_its_own_scale_and_the_projections_are_shared() -> None:
    config = METConfig(exits=(2, 4))
    assert config.ends(6) == (2, 4, 6) and METConfig().ends(12) == (4, 7, 10, 12)
    model = network(exits=(2, 4))
    names = {n.rpartition(".")[2] for n, p in model.named_parameters() if p.requires_grad}
    assert names >= {"down", "up", "scale_2", "scale_4", "scale_6", "head_2", "bias_4"}
    assert "head_6" not in names


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"exits": (6,)}, r"exits: got \(6,\), expected different numbers of blocks from 1 to 5"),
        ({"exits": (2, 2)}, r"exits: got \(2, 2\)"),
        ({"graph": -1}, r"graph: got -1, expected 0 or more"),
        ({"exit_weight": -1}, r"exit_weight: got -1"),
        ({"blocks": (1,)}, r"blocks: got \(1,\), expected none"),
        ({"rank": 0}, r"rank"),
    ],
)
def test_values_it_does_not_take(arguments: dict[str, object], text: str) -> None:
    with pytest.raises(VituneError, match=text):
        network(**arguments)


def test_blocks_that_share_no_tokens_are_refused() -> None:
    sizes = {
        "img_size": 48,
        "img_scale": (1.0, 32 / 48),
        "patch_size": (12, 16),
        "mlp_ratio": (2, 2, 1),
    }
    two = CrossVit(**sizes, embed_dim=(24, 48), depth=((1, 2, 0),), num_heads=(3, 3), num_classes=3)
    with pytest.raises(BackboneError, match=r"MET: got blocks of widths \[24, 48\]"):
        get_peft_model(two, get_method("met").configure(two))
