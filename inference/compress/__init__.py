"""Codes <-> bytes with the probabilities of a speech LM: `codeclm codec compress`."""
