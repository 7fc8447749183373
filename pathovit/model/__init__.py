"""Features -> answer."""
