"""The parts of structural pruning: what depends on what, which channels matter, how many stay, how far to go."""
