"""Studies with an honest protocol, their tables, and speed: what decides between methods."""
