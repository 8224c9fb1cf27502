-- Put before the scripts too: which slices wait, and whose turn it is. A queue (`interactive`, `bulk`) is made of
-- buckets, one for each network and layer that somebody waits for ("vgg16 conv3_3"), and for suspects one apart
-- ("vgg16 conv3_3 suspected"). What is not empty is there:
--   ks:queued:{queue}                    zset: every slice that waits, by the time since when
--   ks:buckets:{queue}                   set: the buckets
--   ks:turns:{queue}:{bucket}            zset: whose slices wait in it, by the turn in which they were served last
--   ks:waiting:{queue}:{bucket}:{owner}  zset: these slices, by the time since when
--   ks:served:{queue}                    zset: the owners who were served last, by the turn

-- Whoever is not among so many was served before all who are.
local REMEMBERED = 1000

local function bucket_of(id, slice, job)
  if not job.needs then  -- of an earlier version
    local request = cjson.decode(job.request)
    job.needs = request.model .. ' ' .. request.layer
  end
  local strikes, company = tonumber(slice.strikes or 0), tonumber(slice.company or 0)
  local suspected = strikes > 0 or (slice.tolerated and company >= tonumber(slice.tolerated))
  return suspected and job.needs .. ' suspected' or job.needs
end

local function fields(key, ...)
  local found = {}
  for at, value in ipairs(redis.call('HMGET', key, ...)) do found[select(at, ...)] = value or nil end
  return found
end

-- The slice waits from now on.
local function enqueue(id)
  local slice = fields('ks:slice:' .. id, 'job', 'queue', 'strikes', 'company', 'tolerated')
  local job = fields('ks:job:' .. slice.job, 'owner', 'needs', 'request')
  local owner, bucket = job.owner or '', bucket_of(id, slice, job)
  local place = slice.queue .. ':' .. bucket
  local since = redis.call('ZSCORE', 'ks:queued:' .. slice.queue, id) or now()
  redis.call('HSET', 'ks:slice:' .. id, 'status', 'queued', 'bucket', bucket)
  redis.call('ZADD', 'ks:queued:' .. slice.queue, since, id)
  redis.call('SADD', 'ks:buckets:' .. slice.queue, bucket)
  redis.call('ZADD', 'ks:turns:' .. place, redis.call('ZSCORE', 'ks:served:' .. slice.queue, owner) or 0, owner)
  redis.call('ZADD', 'ks:waiting:' .. place .. ':' .. owner, since, id)
end

-- The slice waits no longer in this bucket. One that is queued and in none was queued by an earlier version.
local function leave(id, queue, bucket, owner)
  local place = queue .. ':' .. bucket
  redis.call('HDEL', 'ks:slice:' .. id, 'bucket')
  redis.call('ZREM', 'ks:waiting:' .. place .. ':' .. owner, id)
  if redis.call('EXISTS', 'ks:waiting:' .. place .. ':' .. owner) == 1 then return end
  redis.call('ZREM', 'ks:turns:' .. place, owner)
  if redis.call('EXISTS', 'ks:turns:' .. place) == 0 then redis.call('SREM', 'ks:buckets:' .. queue, bucket) end
end

-- The slice waits no longer.
local function dequeue(id)
  local slice = fields('ks:slice:' .. id, 'job', 'queue', 'bucket')
  redis.call('ZREM', 'ks:queued:' .. slice.queue, id)
  if slice.bucket then leave(id, slice.queue, slice.bucket, redis.call('HGET', 'ks:job:' .. slice.job, 'owner') or '') end
end

-- The owner has had its turn.
local function serve(queue, owner)
  local last = redis.call('ZREVRANGE', 'ks:served:' .. queue, 0, 0, 'WITHSCORES')[2]
  local turn = (last or 0) + 1
  redis.call('ZADD', 'ks:served:' .. queue, turn, owner)
  redis.call('ZREMRANGEBYRANK', 'ks:served:' .. queue, 0, -1 - REMEMBERED)
  for _, bucket in ipairs(redis.call('SMEMBERS', 'ks:buckets:' .. queue)) do
    redis.call('ZADD', 'ks:turns:' .. queue .. ':' .. bucket, 'XX', turn, owner)
  end
end

-- queued → running. Returns what a claim says, as `claimed` does.
local claimed
local function begin(id, token, lease, worker)
  local slice = fields('ks:slice:' .. id, 'job', 'queue', 'bucket')
  local job = 'ks:job:' .. slice.job
  local suspected = string.find(slice.bucket or '', ' suspected', 1, true) and 1 or 0
  local since = redis.call('ZSCORE', 'ks:queued:' .. slice.queue, id) or now()
  dequeue(id)
  local attempt = redis.call('HINCRBY', 'ks:slice:' .. id, 'attempt', 1)
  redis.call('HSET', 'ks:slice:' .. id, 'status', 'running', 'token', token, 'worker', worker, 'waited', now() - since,
    'suspected', suspected)
  redis.call('ZADD', 'ks:leases', now() + lease, id)
  if redis.call('HGET', job, 'status') == 'queued' then
    redis.call('HSET', job, 'status', 'running', 'started_at', now())
    tell(slice.job, 'status', 'running')
  end
  if attempt > tonumber(redis.call('HGET', job, 'attempt')) then redis.call('HSET', job, 'attempt', attempt) end
  return claimed(id)
end

-- {slice id, job id, attempt, seconds that it waited, seconds left until its deadline or '', 1 if it is suspected, its
-- items in the form of an earlier version or ''}.
function claimed(id)
  local slice = fields('ks:slice:' .. id, 'job', 'attempt', 'waited', 'suspected', 'items')
  local deadline = redis.call('HGET', 'ks:job:' .. slice.job, 'deadline') or ''
  local left = deadline ~= '' and string.format('%.6f', deadline - now()) or ''
  return {id, slice.job, tonumber(slice.attempt), slice.waited, left, tonumber(slice.suspected), slice.items or ''}
end

-- Why so many slices more are not taken: -2, their owner would have too much open; -3, the queue is full. Else nothing.
local function refused(owner, slices, most_queued, most_open)
  if redis.call('SCARD', 'ks:open:' .. owner) + slices > tonumber(most_open) then return -2 end
  local waiting = redis.call('ZCARD', 'ks:queued:interactive') + redis.call('ZCARD', 'ks:queued:bulk')
  if waiting + slices > tonumber(most_queued) then return -3 end
end

-- From now on the job has so many seconds, or as many as it takes ('').
local function set_deadline(id, seconds)
  redis.call('HSET', 'ks:job:' .. id, 'deadline', seconds ~= '' and now() + seconds or '')
end

-- The slice is to be run, from a first attempt on.
local function open(id)
  redis.call('HSET', 'ks:slice:' .. id, 'attempt', 0, 'strikes', 0, 'company', 0, 'sent_at', now())
  enqueue(id)
  local job = fields('ks:job:' .. redis.call('HGET', 'ks:slice:' .. id, 'job'), 'owner', 'deadline')
  redis.call('SADD', 'ks:open:' .. (job.owner or ''), id)
  if job.deadline ~= '' then redis.call('ZADD', 'ks:deadlines', job.deadline, id) end
end

