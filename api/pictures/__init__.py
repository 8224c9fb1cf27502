"""What can be drawn of a result or of a job: `service.py` has the one way to it."""
