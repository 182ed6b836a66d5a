"""`python -m abmll` is `abmll`."""

from abmll.cli import main

if __name__ == "__main__":
    main()
