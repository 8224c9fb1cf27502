"""All periodic work, in a small process of its own: `python -m api.housekeeping`.

Slices whose worker went silent are queued again, or failed after the last attempt; those that wait beyond their
deadline are failed; messages that were lost are sent again; webhooks are delivered; jobs that have ended are archived,
those whose time is over removed, and their files swept. Each of these is a loop of its own. Several of these processes
may run: of each loop, a lock in Redis lets one work.
"""

from api.housekeeping.chores import loops
from api.housekeeping.runners import Keeper, Loop

__all__ = ["Keeper", "Loop", "loops"]
