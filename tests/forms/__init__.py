"""Released forms of records: dumps, and how they were read."""
