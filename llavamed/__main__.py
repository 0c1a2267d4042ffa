"""`python -m llavamed` is the command `llavamed`."""

from llavamed.cli.main import main

if __name__ == "__main__":
    main()
