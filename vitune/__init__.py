"""vitune: adapt a pre-trained Vision Transformer to your own images."""
