"""Run the command line as ``python -m agegen``."""

from agegen.cli import main

if __name__ == "__main__":
    main()
