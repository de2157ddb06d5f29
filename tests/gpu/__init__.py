"""One prepared run for a GPU that is lent for minutes: `make gpu`, or `python3 tests/gpu`. See README.md here."""
