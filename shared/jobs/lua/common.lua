-- Put before each of the other scripts: what a reader of the job's events is told, and the end of a slice and of a job.

-- Seconds since 1970 by Redis's clock, so that no machine's matters. Only tests set `ks:clock`: it stops this one.
local function now()
  local time = redis.call('TIME')
  return tonumber(redis.call('GET', 'ks:clock') or time[1] + time[2] / 1e6)
end

-- An event that stays with the job, and word to whoever waits for it.
local function tell(id, kind, data)
  redis.call('RPUSH', 'ks:job:' .. id .. ':log', kind .. ' ' .. data)
  redis.call('PUBLISH', 'ks:events', id .. ' ' .. kind)
end

-- How much of a slice's items that run is done, in items: its share of the job's work. What the job has done of its
-- whole work is kept as the most that it ever was.
local function work_done(slice, share)
  local job = redis.call('HGET', slice, 'job')
  job = job and 'ks:job:' .. job
  if not job or redis.call('EXISTS', job) == 0 then return end
  local more = share - (redis.call('HGET', slice, 'share') or 0)
  redis.call('HSET', slice, 'share', share)
  local running = redis.call('HINCRBYFLOAT', job, 'share', more)
  local record = redis.call('HMGET', job, 'completed', 'planned', 'fraction')
  local done = tonumber(record[2]) > 0 and math.min(1, (record[1] + running) / record[2]) or 0
  if done > tonumber(record[3] or 0) then redis.call('HSET', job, 'fraction', done) end
end

-- Only the latest progress stays, and word of it goes out at most five times a second.
local function tell_progress(id, slice, data)
  local job, time = 'ks:job:' .. id, redis.call('TIME')
  local at = time[1] * 1000 + math.floor(time[2] / 1000)
  work_done(slice, cjson.decode(data).share or 0)
  redis.call('HSET', job, 'progress', data)
  if at - (redis.call('HGET', job, 'told_at') or 0) < 200 then return end
  redis.call('HSET', job, 'told_at', at, 'told_place', redis.call('LLEN', job .. ':log'))
  redis.call('HINCRBY', job, 'told', 1)
  redis.call('PUBLISH', 'ks:events', id .. ' progress')
end

-- What every end of a slice does, however it came.
local function slice_done(slice, owner)
  redis.call('ZREM', 'ks:leases', slice)
  redis.call('ZREM', 'ks:deadlines', slice)
  redis.call('SREM', 'ks:open:' .. (owner or ''), slice)
  work_done('ks:slice:' .. slice, 0)
end

-- What a webhook says is kept apart from the record: it is told also where that is gone. See shared/webhooks.py.
local function webhook_due(id, status, at)
  local job = redis.call('HMGET', 'ks:job:' .. id, 'webhook', 'owner', 'traceparent', 'round')
  if (job[1] or '') == '' then return end
  local message = {url = job[1], owner = job[2] or '', traceparent = job[3] or '', status = status, at = at,
    round = tonumber(job[4] or 0)}
  redis.call('HSET', 'ks:webhooks:messages', id, cjson.encode(message))
  redis.call('ZADD', 'ks:webhooks', at, id)
end

local function job_ended(id, status)
  local job = 'ks:job:' .. id
  redis.call('HSET', job, 'status', status, 'finished_at', now())
  redis.call('HDEL', job, 'progress', 'share', 'told', 'told_at', 'told_place')
  redis.call('HINCRBY', 'ks:ended', status, 1)
  redis.call('ZADD', 'ks:finished', now(), id)
  webhook_due(id, status, redis.call('HGET', job, 'finished_at'))
  tell(id, 'status', status)
end

-- All that Redis has of a job, but for its place in its owner's list.
local function forget(id, slices)
  local job = 'ks:job:' .. id
  for number = 0, (tonumber(slices) or 0) - 1 do redis.call('DEL', 'ks:slice:' .. id .. ':' .. number) end
  for _, part in ipairs({'', ':results', ':log', ':webhook', ':drawn', ':blobs', ':images', ':events'}) do
    redis.call('DEL', job .. part)
  end
  redis.call('ZREM', 'ks:finished', id)
  redis.call('ZREM', 'ks:expiry', id)
end
