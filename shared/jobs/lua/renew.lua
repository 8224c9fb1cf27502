-- A heartbeat: extends the lease and stores the progress. KEYS: slice.
-- ARGV: slice id, token, lease seconds, progress JSON or '', then index and picture of each item that has a new preview.
-- Returns 0 if the token is no longer valid, 2 if the job is being watched, otherwise 1.
if redis.call('HGET', KEYS[1], 'status') ~= 'running' or redis.call('HGET', KEYS[1], 'token') ~= ARGV[2] then return 0 end
redis.call('ZADD', 'ks:leases', now() + ARGV[3], ARGV[1])
local id = redis.call('HGET', KEYS[1], 'job')
for at = 5, #ARGV, 2 do redis.call('SET', 'ks:preview:' .. id .. ':' .. ARGV[at], ARGV[at + 1], 'EX', 60) end
if ARGV[4] ~= '' then report_progress(id, KEYS[1], ARGV[4]) end
return 1 + redis.call('EXISTS', 'ks:watched:' .. id)
