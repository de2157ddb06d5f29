"""A prepared training run on a machine that is lent for minutes and reached by files alone (README.md above)."""
