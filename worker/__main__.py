"""`python -m worker`: start a worker process."""

from worker.app import main

main()
