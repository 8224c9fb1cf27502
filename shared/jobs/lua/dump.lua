-- Reads a whole job: {record, results, log, webhook's log}, the first two as name, value, …  KEYS: job.
-- It is a script, not a transaction, because a full Redis allows scripts, and archiving frees its memory.
return {redis.call('HGETALL', KEYS[1]), redis.call('HGETALL', KEYS[1] .. ':results'),
  redis.call('LRANGE', KEYS[1] .. ':log', 0, -1), redis.call('LRANGE', KEYS[1] .. ':webhook', 0, -1)}
