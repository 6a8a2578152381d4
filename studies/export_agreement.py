"""Export runs on six kinds of backbone and tabulate how well the files agree with PyTorch.

    python studies/export_agreement.py /tmp/exports               # 20 minutes on two cores
    python studies/export_agreement.py /tmp/exports --only timm_vit_ti,swin --to onnx

The backbones have random weights; each adapter is trained for an epoch on 40 drawn digits, so
that it is not where it started, and checked on 160. Every cell comes from the export.json that
`vitune export` wrote. What is there already is not done again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file
from transformers import CLIPVisionConfig, CLIPVisionModel, ViTConfig, ViTForImageClassification

TARGETS = ("onnx", "openvino", "pt2")


def timm_weights(folder: Path, name: str, **options: object) -> list[str]:
    """A timm network with random weights, as arguments of `vitune train`."""
    model = timm.create_model(name, pretrained=False, num_classes=0, **options)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "model.safetensors"
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, file)
    return ["--backbone", name, "--checkpoint", str(file)]


def timm_vit_ti(folder: Path) -> list[str]:
    return timm_weights(folder, "vit_tiny_patch16_224")


def timm_vit_b(folder: Path) -> list[str]:
    return timm_weights(folder, "vit_base_patch16_224")


def dinov2(folder: Path) -> list[str]:
    weights = timm_weights(folder, "vit_small_patch14_reg4_dinov2", img_size=98)
    return [*weights, "--image-size", "98"]


def swin(folder: Path) -> list[str]:
    return timm_weights(folder, "swin_tiny_patch4_window7_224")


def transformers_vit(folder: Path) -> list[str]:
    config = ViTConfig(hidden_size=192, num_hidden_layers=6, num_attention_heads=3,
                       intermediate_size=768, image_size=96, patch_size=16)  # fmt: skip
    ViTForImageClassification(config).save_pretrained(folder)
    return ["--backbone", f"hf:{folder}"]


def clip(folder: Path) -> list[str]:
    config = CLIPVisionConfig(hidden_size=192, num_hidden_layers=6, num_attention_heads=3,
                              intermediate_size=768, image_size=96, patch_size=16)  # fmt: skip
    CLIPVisionModel(config).save_pretrained(folder)
    return ["--backbone", f"hf:{folder}"]


def torchvision_vit(folder: Path) -> list[str]:
    from torchvision.models import vit_b_32

    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "model.safetensors"
    weights = vit_b_32(image_size=64).state_dict()
    save_file({key: value.contiguous() for key, value in weights.items()}, file)
    words = ["--backbone", "torchvision:vit_b_32", "--checkpoint", str(file)]
    return [*words, "--image-size", "64"]


NETWORKS = {
    function.__name__: function
    for function in (timm_vit_ti, dinov2, swin, transformers_vit, clip, torchvision_vit, timm_vit_b)
}


def vitune(*words: str) -> None:
    done = subprocess.run([sys.executable, "-m", "vitune", *words], check=False)
    if done.returncode:
        print(f"failed: vitune {' '.join(words)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", default=",".join(NETWORKS))
    parser.add_argument("--to", default=",".join(TARGETS))
    options = parser.parse_args()
    torch.manual_seed(0)
    rows = []
    for name in options.only.split(","):
        run = options.out / name / "run"
        if not run.is_dir():
            words = NETWORKS[name](options.out / name / "weights")
            data = ["--data", "demo:digits", "--val-fraction", "0.8", "--epochs", "1"]
            words = [*data, "--head-init", "linear", "--lr", "1e-2", *words]
            vitune("train", *words, "--out", str(run))
        for target in options.to.split(","):
            out = options.out / name / target
            if not out.is_dir():
                vitune("export", str(run), "--to", target, "--out", str(out))
            if (out / "export.json").is_file():
                rows.append((name, target, json.loads((out / "export.json").read_text())))
    print("\n| backbone | target | batches | images | same class | largest difference, relative | "
          "MB | batch 1: PyTorch, here (ms) | batch 8: PyTorch, here (ms) |")  # fmt: skip
    print("|---|---|---|---:|---:|---:|---:|---:|---:|")
    for name, target, card in rows:
        found = card["verification"]
        worst = max(row["relative"] for row in found["by_batch"].values())
        same = min(row["top1"] for row in found["by_batch"].values())
        times = " | ".join(
            f"{row['pytorch_ms']:.1f}, {row['exported_ms']:.1f}" for row in card["latency"]
        )
        print(f"| {name} | {target} | {', '.join(found['by_batch'])} | "
              f"{card['images']['num_checked']} | {100 * same:.1f} % | {worst:.0e} | "
              f"{card['bytes'] / 1e6:.1f} | {times} |")  # fmt: skip


if __name__ == "__main__":
    main()
