-- running → done; the job ends with its last slice. KEYS: slice. ARGV: slice id, token, now.
-- Returns 1, or 0 where the token no longer holds the slice.
if redis.call('HGET', KEYS[1], 'status') ~= 'running' or redis.call('HGET', KEYS[1], 'token') ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[1], 'status', 'done')
redis.call('ZREM', 'ks:leases', ARGV[1])
local job = 'ks:job:' .. redis.call('HGET', KEYS[1], 'job')
if redis.call('HINCRBY', job, 'open', -1) == 0 then
  local counts = redis.call('HMGET', job, 'completed', 'failed')
  local status = tonumber(counts[1]) > tonumber(counts[2]) and 'succeeded' or 'failed'
  redis.call('HSET', job, 'status', status, 'finished_at', ARGV[3])
  redis.call('HDEL', job, 'progress')
end
return 1
