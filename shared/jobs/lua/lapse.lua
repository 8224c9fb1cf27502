-- Handles an expired lease. KEYS: slice. ARGV: slice id, token for the reaper, seconds from now within which leases are
-- regarded as expired, lease seconds for the reaper, most strikes, 1 if another slice may have killed the worker.
-- Returns 'queued' if the slice can be retried, 'exhausted' if the reaper now holds it in order to fail it, otherwise nil.
-- A strike is counted only if the slice was the only one of the worker, or the only suspect. Any other crash is counted as
-- one in company, which blames none of the slices.
local lease = redis.call('ZSCORE', 'ks:leases', ARGV[1])
if not lease or tonumber(lease) > now() + ARGV[3] then return nil end
if redis.call('HGET', KEYS[1], 'status') ~= 'running' then
  redis.call('ZREM', 'ks:leases', ARGV[1])
  return nil
end
local most, company = tonumber(ARGV[5]), ARGV[6] == '1'
local deaths = redis.call('HINCRBY', KEYS[1], company and 'company' or 'strikes', 1)
if company or deaths < most then
  redis.call('HSET', KEYS[1], 'token', '', 'tolerated', math.max(1, most - 1))
  redis.call('ZREM', 'ks:leases', ARGV[1])
  enqueue(ARGV[1])
  return 'queued'
end
redis.call('HSET', KEYS[1], 'token', ARGV[2], 'worker', 'reaper')
redis.call('ZADD', 'ks:leases', now() + ARGV[4], ARGV[1])
return 'exhausted'
