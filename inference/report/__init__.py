"""Recordings to look at and listen to: one HTML page that holds all it shows."""
