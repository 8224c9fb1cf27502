-- The lease has run out. KEYS: slice. ARGV: slice id, token for the reaper, now, lease end for it, most attempts.
-- Returns 'queued' where another worker may try, 'exhausted' where the reaper now holds the slice to fail it, else nothing.
-- What counts is the attempts since the last finished item.
local lease = redis.call('ZSCORE', 'ks:leases', ARGV[1])
if not lease or tonumber(lease) > tonumber(ARGV[3]) then return nil end
local slice = redis.call('HMGET', KEYS[1], 'status', 'strikes', 'queue')
if slice[1] ~= 'running' then
  redis.call('ZREM', 'ks:leases', ARGV[1])
  return nil
end
if tonumber(slice[2]) < tonumber(ARGV[5]) then
  redis.call('HSET', KEYS[1], 'status', 'queued', 'token', '')
  redis.call('ZREM', 'ks:leases', ARGV[1])
  redis.call('ZADD', 'ks:queued:' .. slice[3], ARGV[3], ARGV[1])
  return 'queued'
end
redis.call('HSET', KEYS[1], 'token', ARGV[2])
redis.call('ZADD', 'ks:leases', ARGV[4], ARGV[1])
return 'exhausted'
