-- Reads a consistent snapshot of a job: {record as JSON, rank in the queue or -1, results (index, JSON, index, …)}.
-- If there is no such job: {'', -2, {}}; if it was deleted, the record has only its owner.
-- KEYS: job, tombstone, and results if requested. ARGV: id of its first slice, most items of which results are returned.
-- If the job has more items, the results are nil, unless it has failed, as they contain the error.
local fields, record = redis.call('HGETALL', KEYS[1]), {}
if #fields == 0 then
  local owner = redis.call('GET', KEYS[2])
  return {owner and cjson.encode({owner = owner}) or '', -2, {}}
end
for at = 1, #fields, 2 do record[fields[at]] = fields[at + 1] end
record.now = string.format('%.3f', now())
local rank = record.status == 'queued' and redis.call('ZRANK', 'ks:queued:' .. record.queue, ARGV[1])
if rank then
  local done, minute, keys = 0, math.floor(record.now / 60), {}
  for back = 0, 4 do keys[back + 1] = 'ks:done:' .. (minute - back) end
  for _, count in ipairs(redis.call('MGET', unpack(keys))) do done = done + (count or 0) end
  record.pace = tostring(done / (240 + record.now % 60))
end
local open = record.status == 'queued' or record.status == 'running'
record.waiting_for = open and record.needs and redis.call('HGET', 'ks:lacking', record.needs) or nil
local results = {}
if KEYS[3] then
  local wanted = tonumber(record.planned) <= tonumber(ARGV[2]) or record.status == 'failed'
  results = wanted and redis.call('HGETALL', KEYS[3])
end
return {cjson.encode(record), rank or -1, results}
