-- running → queued, by a worker that stops; not counted as an attempt. KEYS: slice. ARGV: slice id, token.
-- Returns 1, or 0 if the token is no longer valid. A repeated call with the same token changes nothing.
local slice = redis.call('HMGET', KEYS[1], 'status', 'token')
if slice[2] ~= ARGV[2] then return 0 end
if slice[1] == 'queued' then return 1 end
if slice[1] ~= 'running' then return 0 end
redis.call('HINCRBY', KEYS[1], 'attempt', -1)
redis.call('ZREM', 'ks:leases', ARGV[1])
enqueue(ARGV[1])
return 1
