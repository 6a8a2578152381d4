"""How many altered backbones `audit backbone` refuses, and how many honest ones it lets pass.

    python studies/attestation.py

Both are made from the bundled backbone. Honest: fine-tuned by several methods, rates and seeds and
merged, rounded, with noise. Altered: prepared in full, or in one block alone.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from vitune import fit
from vitune.backbones import load_backbone
from vitune.data import load_splits, normalise
from vitune.privacy import attest
from vitune.privacy.malicious import new_malicious, new_malicious_head

BACKBONE = "vitune/vit_micro_patch4_32"
BINS = (4, 8, 16, 32, 64)


def altered(public: Tensor, count: int) -> Iterator[tuple[str, nn.Module]]:
    """Altered backbones, five kinds in turn."""
    for number in range(count):
        torch.manual_seed(number)
        network = load_backbone(BACKBONE, num_classes=10).model
        kind, size = number % 5, BINS[number // 5 % len(BINS)]
        block = network.blocks[int(torch.randint(6, ()))]
        with torch.no_grad():
            yield _altered(kind, size, network, block, public, number)


def _altered(
    kind: int, size: int, network: nn.Module, block: nn.Module, public: Tensor, seed: int
) -> tuple[str, nn.Module]:
    if kind == 0:
        methods = ("houlsby", "rlrr", "ssf", "lora", "linear")
        method = methods[seed // 5 % 5]
        with torch.enable_grad():
            if method == "linear":
                new_malicious_head(network, method, {}, public, 8, seed=seed)
            else:
                new_malicious(network, method, {}, public, 8, seed=seed)
        return f"prepared for {method}", plain(network)
    if kind == 1:  # neurons along one direction, with bins in their biases
        weight, bias = block.mlp.fc1.weight, block.mlp.fc1.bias
        length = weight.norm(dim=1).median()
        direction = nn.functional.normalize(torch.randn(weight.shape[1]), dim=0)
        noise = 0.05 * torch.randn(size, weight.shape[1]) / weight.shape[1] ** 0.5
        weight[:size] = length * (direction + noise)
        shares = torch.linspace(0.02, 0.98, size)
        bias[:size] = -length * torch.distributions.Normal(0.0, 1.0).icdf(shares)
        return f"{size} bins in one MLP", network
    if kind == 2:  # a branch that hands the token on
        rows = max(8, size)
        block.mlp.fc1.weight[:rows] = 0.5 * torch.eye(rows, 128)
        return f"{rows} copying neurons", network
    if kind == 3:  # one head that makes tags, or looks at its own token
        width = 32
        if seed // 5 % 2:
            block.attn.qkv.weight[:width], block.attn.qkv.bias[:width] = 0, 0
            return "a head that takes means", network
        block.attn.qkv.weight[:width] = block.attn.qkv.weight[128 : 128 + width] = (
            8 * torch.eye(128)[:width]
        )
        return "a head that looks at its own token", network
    for norm in (block.norm1, block.norm2):
        norm.weight.fill_(float(1 + torch.rand(())))
    return "flat norms in one block", network


def plain(network: nn.Module) -> nn.Module:
    """The network under what a method put around its layers."""
    bare = load_backbone(BACKBONE, num_classes=10).model
    from vitune.backbones import unwrapped

    for name, module in bare.named_modules():
        own = unwrapped(network.get_submodule(name))
        for key, value in module.named_parameters(recurse=False):
            stored = getattr(own, key, None)
            if stored is not None and stored.shape == value.shape:
                value.data.copy_(stored.detach())
    return bare


def honest(count: int) -> Iterator[tuple[str, nn.Module]]:
    """Honest backbones: fine-tuned and merged, rounded, with noise."""
    methods = ("full", "rlrr", "ssf", "lora", "bitfit", "layernorm")
    made = 0
    yield "as bundled", load_backbone(BACKBONE).model
    made += 1
    for seed in range(count):
        for method in methods:
            if made == count:
                return
            data = ("demo:digits", "demo:digits?seed=1")[seed % 2]
            # All weights at 1e-2 would learn nothing and lose the features: no honest backbone.
            lr = (1e-4, 1e-3, 3e-4 if method == "full" else 1e-2)[seed % 3]
            trained = fit(
                data=data, method=method, lr=lr, epochs=1, batch_size=16, seed=seed, warmup_epochs=0
            )
            network = trained.model.merge_and_unload()
            note = f"{method}, {data}, lr {lr:g}"
            if seed % 4 == 3:
                network, note = network.half().float(), f"{note}, rounded to fp16"
            yield note, network
            made += 1


def main() -> None:
    backbone = load_backbone(BACKBONE, num_classes=10)
    split = load_splits(
        "demo:digits", backbone.preprocessing, seed=0, val_fraction=0, include=("train",)
    ).train
    assert split is not None
    images = torch.from_numpy(split.images).permute(0, 3, 1, 2)
    pixels, labels = normalise(images, backbone.preprocessing), torch.from_numpy(split.labels)
    for title, networks, wanted in (
        ("altered", altered(pixels, 50), False),
        ("honest", honest(50), True),
    ):
        right, seen, count = 0, Counter[str](), 0
        for note, network in networks:
            found = attest(copy.deepcopy(network).eval(), images=pixels, labels=labels)
            count += 1
            right += found.passed is wanted
            seen.update(one.test for one in found.findings if not one.passed)
            if found.passed is not wanted:
                print("wrong:", title, note, [f.saw for f in found.findings if not f.passed])
        print(f"{title}: {right} of {count} as they should be; tests that saw something: {seen}")


if __name__ == "__main__":
    main()
