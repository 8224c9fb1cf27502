-- An ended job leaves Redis: its record is an object of the store now. KEYS: job.
-- ARGV: job id, when it had ended as that object says, its line in its owner's list, where and how its expiry is noted.
-- Returns 1, or 0 where it is not there, or is not what was written (it runs again, say).
local job = redis.call('HMGET', KEYS[1], 'status', 'finished_at', 'owner', 'created_at', 'slices')
if not job[2] or job[2] ~= ARGV[2] or job[1] == 'queued' or job[1] == 'running' then return 0 end
forget(ARGV[1], job[5])
local list = 'ks:jobs:' .. (job[3] or '')
redis.call('ZREM', list, ARGV[1])
redis.call('ZADD', list, job[4], ARGV[3])
redis.call('SADD', 'ks:owners', job[3] or '')
redis.call('RPUSH', ARGV[4], ARGV[5])
redis.call('ZADD', 'ks:expiring', string.match(ARGV[4], '%d+'), ARGV[4])
return 1
