"""How fast codecs are, what that costs, and how fast this machine could be at most."""
