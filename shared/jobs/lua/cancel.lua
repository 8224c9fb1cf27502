-- Cancels a job, whatever the state of its slices; finished items remain. KEYS: job. ARGV: job id.
-- Returns the job's status: 'cancelled', or that in which it had ended before; nil if there is no such job.
-- The tokens of its slices become invalid, which workers notice at their next heartbeat.
local job = redis.call('HMGET', KEYS[1], 'status', 'slices', 'owner')
if not job[1] then return nil end
if job[1] ~= 'queued' and job[1] ~= 'running' then return job[1] end
for number = 0, tonumber(job[2]) - 1 do
  local id = ARGV[1] .. ':' .. number
  local slice = 'ks:slice:' .. id
  local status = redis.call('HGET', slice, 'status')
  if status == 'queued' then dequeue(id) end
  if status and status ~= 'done' then redis.call('HSET', slice, 'status', 'done', 'token', '') end
  slice_done(id, job[3])
end
redis.call('HSET', KEYS[1], 'open', 0)
job_ended(ARGV[1], 'cancelled')
return 'cancelled'
