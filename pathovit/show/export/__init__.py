"""Stored features and maps in the layouts that other programs read."""
