"""How fast each step is, and how fast it could be."""
