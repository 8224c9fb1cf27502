-- queued → running. KEYS: slice. ARGV: slice id, token, now, lease end, worker.
-- Returns {job id, items, attempt}, or nothing where the slice is not queued (a duplicate message, say).
-- The same claim asked again, because its answer was lost on the way, is answered again.
local slice = redis.call('HMGET', KEYS[1], 'status', 'job', 'items', 'queue', 'token', 'attempt')
if slice[1] == 'running' and slice[5] == ARGV[2] then
  return {slice[2], slice[3], tonumber(slice[6])}
end
if slice[1] ~= 'queued' then return nil end
local job = 'ks:job:' .. slice[2]
local attempt = redis.call('HINCRBY', KEYS[1], 'attempt', 1)
redis.call('HSET', KEYS[1], 'status', 'running', 'token', ARGV[2], 'worker', ARGV[5])
redis.call('ZREM', 'ks:queued:' .. slice[4], ARGV[1])
redis.call('ZADD', 'ks:leases', ARGV[4], ARGV[1])
if redis.call('HGET', job, 'status') == 'queued' then
  redis.call('HSET', job, 'status', 'running', 'started_at', ARGV[3])
  tell(slice[2], 'status', 'running')
end
if attempt > tonumber(redis.call('HGET', job, 'attempt')) then redis.call('HSET', job, 'attempt', attempt) end
return {slice[2], slice[3], attempt}
