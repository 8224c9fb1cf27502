"""The figures of results and jobs; `service.py` is the interface to them."""
