"""The doctor: what is wrong with speech before a model learns from it, and with a run that has learned from it."""
