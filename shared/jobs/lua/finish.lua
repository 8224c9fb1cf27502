-- running → done; the job ends with its last slice. KEYS: slice. ARGV: slice id, token, now.
-- Returns 1, or 0 where the token no longer holds the slice. Asked again with the same token, it changes nothing.
local slice = redis.call('HMGET', KEYS[1], 'status', 'token', 'job')
if slice[2] ~= ARGV[2] then return 0 end
if slice[1] == 'done' then return 1 end
if slice[1] ~= 'running' then return 0 end
redis.call('HSET', KEYS[1], 'status', 'done')
redis.call('ZREM', 'ks:leases', ARGV[1])
redis.call('ZREM', 'ks:deadlines', ARGV[1])
local job = 'ks:job:' .. slice[3]
if redis.call('HINCRBY', job, 'open', -1) == 0 then
  local counts = redis.call('HMGET', job, 'completed', 'failed')
  local status = tonumber(counts[1]) > tonumber(counts[2]) and 'succeeded' or 'failed'
  redis.call('HSET', job, 'status', status, 'finished_at', ARGV[3])
  redis.call('HDEL', job, 'progress')
end
return 1
