-- Creates a job with its slices, all queued, if the queue has room for them.
-- KEYS: job, idempotency key or ''.
-- ARGV: job id, digest of the request, lifetime of the idempotency key, JSON of the record's fields, seconds until its
--       deadline or '', limit of queued slices, limit of the owner's unfinished slices, seconds until the job expires,
--       lifetime of the references from its images.
-- Returns {job id, 1}, also for a repeated call after the response was lost; {job id, 0} for an earlier job with the same
-- key and request; {job id, -1} if the key was used with another request; {'', -2} or {'', -3} as `refused`.
if redis.call('EXISTS', KEYS[1]) == 1 then return {ARGV[1], 1} end
if KEYS[2] ~= '' then
  local known = redis.call('HMGET', KEYS[2], 'job', 'digest')
  if known[1] then return {known[1], known[2] == ARGV[2] and 0 or -1} end  -- deleted with its job
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
add_event(ARGV[1], 'status', 'queued')
return {ARGV[1], 1}
