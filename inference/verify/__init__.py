"""Checks that a model scores, generates and trains one and the same distribution: `codeclm verify`."""
