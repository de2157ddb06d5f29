"""How fast models generate, beside the limits of the machine and other libraries: `codeclm bench`."""
