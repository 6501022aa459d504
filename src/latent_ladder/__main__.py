"""``python -m latent_ladder``: the same as the command ``ladder``."""

from latent_ladder.cli.app import main

if __name__ == "__main__":
    main()
