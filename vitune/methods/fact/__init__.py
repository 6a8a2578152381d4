"""FacT: all weight changes as one tensor, factorised."""
