"""``python -m flatsparse``."""

from flatsparse.cli.main import main

if __name__ == "__main__":
    main()
