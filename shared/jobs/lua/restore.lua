-- Restores an archived job to Redis, in the state in which it ended. KEYS: job.
-- ARGV: job id; JSON of its record, results, log and webhook's log. Returns 1, or 0 if it exists already, or was deleted.
if redis.call('EXISTS', KEYS[1], 'ks:gone:' .. ARGV[1]) > 0 or redis.call('ZSCORE', 'ks:removed', ARGV[1]) then return 0 end
local record = cjson.decode(ARGV[2])
for name, value in pairs(record) do redis.call('HSET', KEYS[1], name, value) end
for index, text in pairs(cjson.decode(ARGV[3])) do redis.call('HSET', KEYS[1] .. ':results', index, text) end
for _, entry in ipairs(cjson.decode(ARGV[4])) do redis.call('RPUSH', KEYS[1] .. ':log', entry) end
for _, entry in ipairs(cjson.decode(ARGV[5])) do redis.call('RPUSH', KEYS[1] .. ':webhook', entry) end
for number = 0, record.slices - 1 do
  redis.call('HSET', 'ks:slice:' .. ARGV[1] .. ':' .. number, 'status', 'done', 'token', '', 'job', ARGV[1],
    'queue', record.queue, 'attempt', 0, 'strikes', 0, 'company', 0)
  if type(cjson.decode(record.request).kernels) == 'string' then
    redis.call('HSET', 'ks:slice:' .. ARGV[1] .. ':' .. number, 'resolved', 1)
  end
end
local list = 'ks:jobs:' .. (record.owner or '')
for _, line in ipairs(redis.call('ZRANGEBYSCORE', list, record.created_at, record.created_at)) do
  if string.sub(line, 1, #ARGV[1]) == ARGV[1] then redis.call('ZREM', list, line) end
end
redis.call('ZADD', list, record.created_at, ARGV[1])
redis.call('ZADD', 'ks:expiry', record.expires_at, ARGV[1])
redis.call('ZADD', 'ks:finished', now(), ARGV[1])
return 1
