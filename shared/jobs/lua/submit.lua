-- Creates a job with its slices, all queued, if the queue has room for them.
-- KEYS: job, idempotency key or ''.
-- ARGV: job id, digest of the request, seconds that the idempotency key is kept, JSON of the record's fields, seconds
--       until its deadline or '', most slices that the queue may hold, most that the owner may have open, seconds until
--       the job expires, seconds for which its images are found here.
-- Returns {job id, 1}, also where the answer was lost and it is asked again; where the key is known, {job id, 0}; where
-- the key had another request, {job id, -1}; where the owner has too much open, {'', -2}; where the queue is full, {'', -3}.
if redis.call('EXISTS', KEYS[1]) == 1 then return {ARGV[1], 1} end
if KEYS[2] ~= '' then
  local known = redis.call('HMGET', KEYS[2], 'job', 'digest')
  if known[1] then return {known[1], known[2] == ARGV[2] and 0 or -1} end  -- it is forgotten with its job
end
local record = cjson.decode(ARGV[4])
local slices, created = tonumber(record.slices), now()
local refusal = refused((record.owner or ''), slices, ARGV[6], ARGV[7])
if refusal then return {'', refusal} end
if KEYS[2] ~= '' then
  redis.call('HSET', KEYS[2], 'job', ARGV[1], 'digest', ARGV[2])
  redis.call('EXPIRE', KEYS[2], ARGV[3])
end
for name, value in pairs(record) do redis.call('HSET', KEYS[1], name, value) end
redis.call('HSET', KEYS[1], 'created_at', created)
redis.call('SADD', 'ks:owners', (record.owner or ''))
redis.call('ZADD', 'ks:jobs:' .. (record.owner or ''), created, ARGV[1])
local expires = created + ARGV[8]
redis.call('HSET', KEYS[1], 'expires_at', expires)
redis.call('ZADD', 'ks:expiry', expires, ARGV[1])
for _, digest in ipairs(cjson.decode(record.request).images) do
  redis.call('SET', 'ks:held:' .. (record.owner or '') .. ':' .. digest, ARGV[1], 'EX', ARGV[9])
end
set_deadline(ARGV[1], ARGV[5])
for number = 0, slices - 1 do
  local id = ARGV[1] .. ':' .. number
  redis.call('HSET', 'ks:slice:' .. id, 'job', ARGV[1], 'queue', record.queue)
  open(id)
end
tell(ARGV[1], 'status', 'queued')
return {ARGV[1], 1}
