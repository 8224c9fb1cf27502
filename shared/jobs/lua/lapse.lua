-- The lease has run out. KEYS: slice. ARGV: slice id, token for the reaper, now, latest lease end that counts as run out,
-- lease end for the reaper, most strikes, 1 if the worker held other slices.
-- Returns 'queued' where another worker may try, 'exhausted' where the reaper now holds the slice to fail it, else nothing.
-- Only a death alone is a strike: one in company proves nothing against any of them.
local lease = redis.call('ZSCORE', 'ks:leases', ARGV[1])
if not lease or tonumber(lease) > tonumber(ARGV[4]) then return nil end
if redis.call('HGET', KEYS[1], 'status') ~= 'running' then
  redis.call('ZREM', 'ks:leases', ARGV[1])
  return nil
end
local deaths = redis.call('HINCRBY', KEYS[1], ARGV[7] == '1' and 'company' or 'strikes', 1)
if ARGV[7] == '1' or deaths < tonumber(ARGV[6]) then
  redis.call('HSET', KEYS[1], 'status', 'queued', 'token', '')
  redis.call('ZREM', 'ks:leases', ARGV[1])
  redis.call('ZADD', 'ks:queued:' .. redis.call('HGET', KEYS[1], 'queue'), ARGV[3], ARGV[1])
  return 'queued'
end
redis.call('HSET', KEYS[1], 'token', ARGV[2], 'worker', 'reaper')
redis.call('ZADD', 'ks:leases', ARGV[5], ARGV[1])
return 'exhausted'
