"""A file on disk -> Slide -> TissueMask -> TileGrid."""
