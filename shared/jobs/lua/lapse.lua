-- The lease has run out. KEYS: slice. ARGV: slice id, token for the reaper, now, lease end for it, most attempts.
-- Returns 'queued' where another worker may try, 'exhausted' where the reaper now holds the slice to fail it, else nothing.
local lease = redis.call('ZSCORE', 'ks:leases', ARGV[1])
if not lease or tonumber(lease) > tonumber(ARGV[3]) then return nil end
if redis.call('HGET', KEYS[1], 'status') ~= 'running' then
  redis.call('ZREM', 'ks:leases', ARGV[1])
  return nil
end
if tonumber(redis.call('HGET', KEYS[1], 'attempt')) < tonumber(ARGV[5]) then
  redis.call('HSET', KEYS[1], 'status', 'queued', 'token', '')
  redis.call('ZREM', 'ks:leases', ARGV[1])
  redis.call('ZADD', 'ks:queued', ARGV[3], ARGV[1])
  return 'queued'
end
redis.call('HSET', KEYS[1], 'token', ARGV[2])
redis.call('ZADD', 'ks:leases', ARGV[4], ARGV[1])
return 'exhausted'
