-- Queues the failed items of an ended job again, and deletes their results. KEYS: job.
-- ARGV: job id, token, `finished_at` as read before, seconds until the new deadline or '', limit of queued slices, limit of
--       the owner's unfinished slices; then for each slice with failed items: number, JSON of their indices.
-- Returns 1, also for a repeated call with the same token; 0 if the job has changed since; otherwise the result of `refused`.
local job = fields(KEYS[1], 'retried', 'finished_at', 'owner')
if job.retried == ARGV[2] then return 1 end
if job.finished_at ~= ARGV[3] then return 0 end
local slices, items = (#ARGV - 6) / 2, 0
local refusal = refused(job.owner or '', slices, ARGV[5], ARGV[6])
if refusal then return refusal end
set_deadline(ARGV[1], ARGV[4])
for at = 7, #ARGV, 2 do
  local id = ARGV[1] .. ':' .. ARGV[at]
  items = items + redis.call('HDEL', KEYS[1] .. ':results', unpack(cjson.decode(ARGV[at + 1])))
  redis.call('HINCRBY', KEYS[1], 'unresolved', redis.call('HDEL', 'ks:slice:' .. id, 'resolved'))
  open(id)
end
redis.call('HSET', KEYS[1], 'status', 'queued', 'retried', ARGV[2], 'attempt', 0, 'open', slices)
redis.call('HDEL', KEYS[1], 'started_at', 'finished_at')
redis.call('HINCRBY', KEYS[1], 'completed', -items)
redis.call('HINCRBY', KEYS[1], 'failed', -items)
redis.call('HDEL', KEYS[1], 'fraction')
redis.call('HINCRBY', KEYS[1], 'round', 1)  -- pictures of several items must be drawn again
redis.call('DEL', KEYS[1] .. ':webhook')  -- log of attempts to report the former end
local message = redis.call('HGET', 'ks:webhooks:messages', ARGV[1])
local line = message and cjson.decode(message).line
if line then redis.call('ZREM', line, ARGV[1]) end
redis.call('HDEL', 'ks:webhooks:messages', ARGV[1])
redis.call('ZREM', 'ks:webhooks', ARGV[1])
redis.call('ZREM', 'ks:finished', ARGV[1])
add_event(ARGV[1], 'status', 'queued')
return 1
