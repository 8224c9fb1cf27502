-- running → queued, by its holder (a worker that stops): not counted as an attempt. KEYS: slice. ARGV: slice id, token, now.
-- Returns 1, or 0 where the token no longer holds the slice.
if redis.call('HGET', KEYS[1], 'status') ~= 'running' or redis.call('HGET', KEYS[1], 'token') ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[1], 'status', 'queued', 'token', '')
redis.call('HINCRBY', KEYS[1], 'attempt', -1)
redis.call('ZREM', 'ks:leases', ARGV[1])
redis.call('ZADD', 'ks:queued', ARGV[3], ARGV[1])
return 1
