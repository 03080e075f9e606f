"""``python -m flatsparse``."""

from flatsparse.cli import main

if __name__ == "__main__":
    main()
