"""All periodic work, in a small process of its own: `python -m api.housekeeping`.

It requeues slices whose worker was lost, or fails them after the last attempt; fails slices that wait beyond their
deadline; resends lost messages; delivers webhooks; archives ended jobs; and deletes expired jobs with their files. Each
task is a loop of its own. Several of these processes may run: a lock in Redis lets one of them run each loop.
"""

from api.housekeeping.scheduler import Loop, Scheduler
from api.housekeeping.tasks import loops

__all__ = ["Loop", "Scheduler", "loops"]
