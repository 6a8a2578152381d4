"""The README of an adapter, for a reader who has never heard of vitune."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import ModelCard

HEADING = "# A vitune adapter"
TAG = "vitune"


def name_vitune(readme: Path, method: str, title: str) -> None:
    """Start PEFT's model card with how to load the adapter, and tag it; only once."""
    card = ModelCard.load(readme)
    card.data.tags = sorted({*(card.data.tags or ()), TAG})
    if HEADING not in card.text:
        card.text = f"{loading_text(method, title)}\n{card.text.lstrip()}"
    card.save(readme)


def loading_text(method: str, title: str) -> str:
    """How to load an adapter with PEFT alone, as Markdown."""
    return f"""{HEADING}

Method: {title} (`{method}`), from vitune.
PEFT can load it once vitune is imported; without that it stops with a `KeyError` that says so.

```python
# pip install vitune
import vitune
from peft import PeftModel

model = PeftModel.from_pretrained(backbone, "the folder of this file")
```
"""
