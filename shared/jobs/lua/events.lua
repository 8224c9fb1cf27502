-- Reads the events of a job. KEYS: job, its log. ARGV: first and last entry, as for LRANGE.
-- Returns {number of all entries, these entries, the latest progress or nil}; the number is 0 if there is no such job.
local length = redis.call('LLEN', KEYS[2])
if length == 0 then length = redis.call('EXISTS', KEYS[1]) end  -- a job of a version without logs
if length == 0 then return {0, {}, false} end
local progress = redis.call('HMGET', KEYS[1], 'told', 'told_place', 'progress', 'completed', 'planned', 'unresolved',
  'fraction')
if progress[1] and progress[3] then
  progress[7] = progress[7] or ''
else
  progress = false
end
return {length, redis.call('LRANGE', KEYS[2], ARGV[1], ARGV[2]), progress}
