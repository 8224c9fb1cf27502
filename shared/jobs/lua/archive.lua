-- Deletes an ended job from Redis, after its record has been written to the object store. KEYS: job.
-- ARGV: job id, `finished_at` in the stored record, the job's line for its owner's list, key and entry of its expiry list.
-- Returns 1, or 0 if the job does not exist or has changed since it was written (it was retried, for example).
local job = redis.call('HMGET', KEYS[1], 'status', 'finished_at', 'owner', 'created_at', 'slices')
if not job[2] or job[2] ~= ARGV[2] or job[1] == 'queued' or job[1] == 'running' then return 0 end
delete_job(ARGV[1], job[5])
local list = 'ks:jobs:' .. (job[3] or '')
redis.call('ZREM', list, ARGV[1])
redis.call('ZADD', list, job[4], ARGV[3])
redis.call('SADD', 'ks:owners', job[3] or '')
redis.call('RPUSH', ARGV[4], ARGV[5])
redis.call('ZADD', 'ks:expiring', string.match(ARGV[4], '%d+'), ARGV[4])
return 1
