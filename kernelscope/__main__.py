"""`python -m kernelscope`, and the program of this name: Ctrl-C is exit code 130 from the first moment on."""

import os
import signal
import sys


def main() -> None:
    """Run the command line, whose imports take half a second.

    While they last Ctrl-C ends the process at once: a KeyboardInterrupt inside pydantic's schemas becomes an error of
    theirs, and there is nothing yet to be cleaned up.
    """
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:  # not where it is ignored, as under nohup
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    try:
        from kernelscope import cli

        signal.signal(signal.SIGINT, before)
        cli.main()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
