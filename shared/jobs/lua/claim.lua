-- queued → running, of a certain slice. KEYS: slice. ARGV: slice id, token, lease seconds, worker.
-- Returns what `claimed` does, or nothing where it is not queued. The same claim asked again, because its answer was
-- lost on the way, is answered again.
local slice = redis.call('HMGET', KEYS[1], 'status', 'token')
if slice[1] == 'running' and slice[2] == ARGV[2] then return claimed(ARGV[1]) end
if slice[1] ~= 'queued' then return nil end
return begin(ARGV[1], ARGV[2], ARGV[3], ARGV[4])
