-- Prepended to the scripts: the queues (`interactive`, `bulk`). A queue consists of buckets, one for each network and
-- layer that queued slices need ("vgg16 conv3_3"), and a separate one for those slices that may have killed workers
-- ("vgg16 conv3_3 suspected"). Keys, which exist unless they are empty:
--   ks:queued:{queue}                    zset: every queued slice, by the time since which it waits
--   ks:buckets:{queue}                   set: the buckets
--   ks:turns:{queue}:{bucket}            zset: owners of slices in the bucket, by the number of their last turn
--   ks:waiting:{queue}:{bucket}:{owner}  zset: slices of the owner in the bucket, by the time since which they wait
--   ks:served:{queue}                    zset: the owners who were served last, by the number of their turn

-- Entries in ks:served. Other owners are regarded as served before all of them.
local SERVED_ENTRIES = 1000

local function bucket_of(id, slice, job)
  if not job.needs then  -- job of an earlier version
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

-- Adds a slice to its queue.
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

-- Removes a slice from its bucket. Queued slices without a bucket were queued by an earlier version.
local function leave(id, queue, bucket, owner)
  local place = queue .. ':' .. bucket
  redis.call('HDEL', 'ks:slice:' .. id, 'bucket')
  redis.call('ZREM', 'ks:waiting:' .. place .. ':' .. owner, id)
  if redis.call('EXISTS', 'ks:waiting:' .. place .. ':' .. owner) == 1 then return end
  redis.call('ZREM', 'ks:turns:' .. place, owner)
  if redis.call('EXISTS', 'ks:turns:' .. place) == 0 then redis.call('SREM', 'ks:buckets:' .. queue, bucket) end
end

-- Removes a slice from its queue.
local function dequeue(id)
  local slice = fields('ks:slice:' .. id, 'job', 'queue', 'bucket')
  redis.call('ZREM', 'ks:queued:' .. slice.queue, id)
  if slice.bucket then leave(id, slice.queue, slice.bucket, redis.call('HGET', 'ks:job:' .. slice.job, 'owner') or '') end
end

-- Records that an owner was served.
local function serve(queue, owner)
  local last = redis.call('ZREVRANGE', 'ks:served:' .. queue, 0, 0, 'WITHSCORES')[2]
  local turn = (last or 0) + 1
  redis.call('ZADD', 'ks:served:' .. queue, turn, owner)
  redis.call('ZREMRANGEBYRANK', 'ks:served:' .. queue, 0, -1 - SERVED_ENTRIES)
  for _, bucket in ipairs(redis.call('SMEMBERS', 'ks:buckets:' .. queue)) do
    redis.call('ZADD', 'ks:turns:' .. queue .. ':' .. bucket, 'XX', turn, owner)
  end
end

-- queued → running. Returns the result of `claimed`.
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
    add_event(slice.job, 'status', 'running')
  end
  if attempt > tonumber(redis.call('HGET', job, 'attempt')) then redis.call('HSET', job, 'attempt', attempt) end
  return claimed(id)
end

-- The data of a claim: {slice id, job id, attempt, seconds in the queue, seconds until its deadline or '', 1 if it may have
-- killed workers, its items if an earlier version stored them or ''}.
function claimed(id)
  local slice = fields('ks:slice:' .. id, 'job', 'attempt', 'waited', 'suspected', 'items')
  local deadline = redis.call('HGET', 'ks:job:' .. slice.job, 'deadline') or ''
  local left = deadline ~= '' and string.format('%.6f', deadline - now()) or ''
  return {id, slice.job, tonumber(slice.attempt), slice.waited, left, tonumber(slice.suspected), slice.items or ''}
end

-- Why more slices are rejected: -2, too many unfinished slices of the owner; -3, the queue is full. Nil if they are not.
local function refused(owner, slices, most_queued, most_open)
  if redis.call('SCARD', 'ks:open:' .. owner) + slices > tonumber(most_open) then return -2 end
  local waiting = redis.call('ZCARD', 'ks:queued:interactive') + redis.call('ZCARD', 'ks:queued:bulk')
  if waiting + slices > tonumber(most_queued) then return -3 end
end

-- Sets the job's deadline to so many seconds from now; '' for no deadline.
local function set_deadline(id, seconds)
  redis.call('HSET', 'ks:job:' .. id, 'deadline', seconds ~= '' and now() + seconds or '')
end

-- Queues a new or retried slice, with all attempts left.
local function open(id)
  redis.call('HSET', 'ks:slice:' .. id, 'attempt', 0, 'strikes', 0, 'company', 0, 'sent_at', now())
  enqueue(id)
  local job = fields('ks:job:' .. redis.call('HGET', 'ks:slice:' .. id, 'job'), 'owner', 'deadline')
  redis.call('SADD', 'ks:open:' .. (job.owner or ''), id)
  if job.deadline ~= '' then redis.call('ZADD', 'ks:deadlines', job.deadline, id) end
end

