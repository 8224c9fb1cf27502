"""`python -m kernelscope`, and the program of this name: Ctrl-C is exit code 130 from the first moment on."""

import sys


def main() -> None:
    """Run the command line, whose imports take half a second."""
    try:
        from kernelscope import cli

        cli.main()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
