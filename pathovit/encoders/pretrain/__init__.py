"""An encoder trained on one's own slides, without labels: tiles drawn from them, changed, and learned from."""
