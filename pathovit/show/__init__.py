"""Answer -> what people and other programs read."""
