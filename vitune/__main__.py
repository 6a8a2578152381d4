"""`python -m vitune`: the command line, also for `accelerate launch -m vitune train ...`."""

from vitune.cli import main

if __name__ == "__main__":
    main()
