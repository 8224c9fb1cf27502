-- What happened to a job. KEYS: job, its log. ARGV: from which entry to which, from 0, as of LRANGE.
-- Returns {how many entries there are, those, the latest progress or nothing}; {0} where there is no such job.
local length = redis.call('LLEN', KEYS[2])
if length == 0 then length = redis.call('EXISTS', KEYS[1]) end  -- a job of before there were logs
if length == 0 then return {0, {}, false} end
local told = redis.call('HMGET', KEYS[1], 'told', 'told_place', 'progress', 'completed', 'planned', 'unresolved',
  'fraction')
if told[1] and told[3] then
  told[7] = told[7] or ''
else
  told = false
end
return {length, redis.call('LRANGE', KEYS[2], ARGV[1], ARGV[2]), told}
