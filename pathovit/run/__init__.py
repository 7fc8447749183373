"""Many slides over many workers."""
