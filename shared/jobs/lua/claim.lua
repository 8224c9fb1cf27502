-- Claims a given slice, queued → running. KEYS: slice. ARGV: slice id, token, lease seconds, worker.
-- Returns the result of `claimed`, or nil if the slice is not queued. A repeated call with the same token, after the
-- response was lost, returns the same.
local slice = redis.call('HMGET', KEYS[1], 'status', 'token')
if slice[1] == 'running' and slice[2] == ARGV[2] then return claimed(ARGV[1]) end
if slice[1] ~= 'queued' then return nil end
return begin(ARGV[1], ARGV[2], ARGV[3], ARGV[4])
