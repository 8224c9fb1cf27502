-- The lease has run out. KEYS: slice. ARGV: slice id, token for the reaper, seconds from now until when a lease counts as
-- run out, lease seconds for the reaper, most strikes, 1 if the worker may have died of another slice.
-- Returns 'queued' where another worker may try, 'exhausted' where the reaper now holds the slice to fail it, else nothing.
-- Only a death alone, or as the only suspect, is a strike: any other in company proves nothing against any of them.
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
