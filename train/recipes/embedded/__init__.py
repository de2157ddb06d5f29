"""The embedded codec and language model from nothing: `python -m codeclm.train.recipes.embedded OUT`."""
