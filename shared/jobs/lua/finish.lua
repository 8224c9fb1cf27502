-- running → done; the job ends with its last slice. KEYS: slice. ARGV: slice id, token.
-- Returns 1, or 0 if the token is no longer valid. A repeated call with the same token changes nothing.
local slice = redis.call('HMGET', KEYS[1], 'status', 'token', 'job')
if slice[2] ~= ARGV[2] then return 0 end
if slice[1] == 'done' then return 1 end
if slice[1] ~= 'running' then return 0 end
redis.call('HSET', KEYS[1], 'status', 'done')
local job = 'ks:job:' .. slice[3]
slice_done(ARGV[1], redis.call('HGET', job, 'owner'))
local minute = 'ks:done:' .. math.floor(now() / 60)
redis.call('INCR', minute)
redis.call('EXPIRE', minute, 900)
if redis.call('HINCRBY', job, 'open', -1) == 0 then
  local counts = redis.call('HMGET', job, 'completed', 'failed')
  job_ended(slice[3], tonumber(counts[1]) > tonumber(counts[2]) and 'succeeded' or 'failed')
end
return 1
