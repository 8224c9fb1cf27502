-- The holder shows progress: its lease is extended. KEYS: slice. ARGV: slice id, token, lease end, progress JSON or ''.
-- Returns 1, or 0 where the token no longer holds the slice.
if redis.call('HGET', KEYS[1], 'status') ~= 'running' or redis.call('HGET', KEYS[1], 'token') ~= ARGV[2] then return 0 end
redis.call('ZADD', 'ks:leases', ARGV[3], ARGV[1])
if ARGV[4] ~= '' then
  local id = redis.call('HGET', KEYS[1], 'job')
  redis.call('HSET', 'ks:job:' .. id, 'progress', ARGV[4])
  tell_progress(id, ARGV[4])
end
return 1
