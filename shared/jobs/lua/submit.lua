-- Creates a job with its slices, all queued, if the queue has room for them.
-- KEYS: job, idempotency key or ''.
-- ARGV: job id, now, expires at, digest of the request, seconds that the idempotency key is kept, queue,
--       JSON of the record's fields, JSON of the slices' items (one string each), deadline or '', owner,
--       most slices that the queue may hold, most that the owner may have open.
-- Returns {job id, 1}, also where the answer was lost and it is asked again; where the key is known, {job id, 0}; where the key had another request, {job id, -1};
-- where the owner has too much open, {'', -2}; where the queue is full, {'', -3}.
if redis.call('EXISTS', KEYS[1]) == 1 then return {ARGV[1], 1} end
if KEYS[2] ~= '' then
  local known = redis.call('HMGET', KEYS[2], 'job', 'digest')
  if known[1] and redis.call('EXISTS', 'ks:job:' .. known[1]) == 1 then
    return {known[1], known[2] == ARGV[4] and 0 or -1}
  end
end
local slices = cjson.decode(ARGV[8])
if redis.call('SCARD', 'ks:open:' .. ARGV[10]) + #slices > tonumber(ARGV[12]) then return {'', -2} end
local waiting = redis.call('ZCARD', 'ks:queued:interactive') + redis.call('ZCARD', 'ks:queued:bulk')
if waiting + #slices > tonumber(ARGV[11]) then return {'', -3} end
if KEYS[2] ~= '' then
  redis.call('HSET', KEYS[2], 'job', ARGV[1], 'digest', ARGV[4])
  redis.call('EXPIRE', KEYS[2], ARGV[5])
end
for name, value in pairs(cjson.decode(ARGV[7])) do redis.call('HSET', KEYS[1], name, value) end
redis.call('ZADD', 'ks:jobs:' .. ARGV[10], ARGV[2], ARGV[1])
redis.call('ZADD', 'ks:expiry', ARGV[3], ARGV[1])
for number, items in ipairs(slices) do
  local id = ARGV[1] .. ':' .. (number - 1)
  redis.call('HSET', 'ks:slice:' .. id, 'status', 'queued', 'job', ARGV[1], 'queue', ARGV[6], 'items', items,
    'attempt', 0, 'strikes', 0, 'company', 0, 'sent_at', ARGV[2])
  redis.call('ZADD', 'ks:queued:' .. ARGV[6], ARGV[2], id)
  redis.call('SADD', 'ks:open:' .. ARGV[10], id)
  if ARGV[9] ~= '' then redis.call('ZADD', 'ks:deadlines', ARGV[9], id) end
end
tell(ARGV[1], 'status', 'queued')
return {ARGV[1], 1}
