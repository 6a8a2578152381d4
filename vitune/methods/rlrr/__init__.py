"""RLRR: residual-based low-rank rescaling."""
