"""`vitune bench speed`: training steps timed side by side, and their memory."""
