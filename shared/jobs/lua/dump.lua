-- All that Redis has of a job: {its record, results, log, webhook's log}, the first two as name, value, …  KEYS: job.
-- A script, not a transaction: a Redis that is full allows it, and archiving is what empties it.
return {redis.call('HGETALL', KEYS[1]), redis.call('HGETALL', KEYS[1] .. ':results'),
  redis.call('LRANGE', KEYS[1] .. ':log', 0, -1), redis.call('LRANGE', KEYS[1] .. ':webhook', 0, -1)}
