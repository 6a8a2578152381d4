"""Two methods for vitune."""
