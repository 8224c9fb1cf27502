-- Deletes a job, leaving a tombstone, and schedules the deletion of its files. KEYS: job.
-- ARGV: job id, owner, time of creation, key of its idempotency key or '', lifetime of the tombstone in seconds (0: none is
-- needed, as the id contains the time of creation).
-- Returns 1; 0 if it was already deleted; -1 if it has not ended, and must be cancelled first.
local status = redis.call('HGET', KEYS[1], 'status')
if status == 'queued' or status == 'running' then return -1 end
local there = redis.call('HMGET', KEYS[1], 'slices')[1]
local list = 'ks:jobs:' .. ARGV[2]
local found = there and 1 or 0
if there then delete_job(ARGV[1], there) end
for _, line in ipairs(redis.call('ZRANGEBYSCORE', list, ARGV[3], ARGV[3])) do
  if string.sub(line, 1, #ARGV[1]) == ARGV[1] then found = redis.call('ZREM', list, line) end
end
if found == 0 then return 0 end
if ARGV[4] ~= '' and redis.call('HGET', ARGV[4], 'job') == ARGV[1] then redis.call('DEL', ARGV[4]) end
if tonumber(ARGV[5]) > 0 then redis.call('SET', 'ks:gone:' .. ARGV[1], ARGV[2], 'EX', ARGV[5]) end
redis.call('ZADD', 'ks:removed', now(), ARGV[1])
redis.call('PUBLISH', 'ks:events', ARGV[1] .. ' gone')
return 1
