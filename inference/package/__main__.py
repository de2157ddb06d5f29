"""`python -m codeclm`: the command `codeclm`."""

from .train.cli import main

if __name__ == "__main__":
    main()
