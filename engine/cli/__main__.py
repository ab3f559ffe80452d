"""python -m engine.cli: the command line, as tunebook."""

from engine.cli import main

if __name__ == "__main__":
    main()
