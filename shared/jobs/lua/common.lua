-- Prepended to each of the other scripts: the clock, a job's events and progress, and the end of slices and jobs.

-- Seconds since 1970 by Redis's clock, or the value of `ks:clock`, which only tests set.
local function now()
  local time = redis.call('TIME')
  return tonumber(redis.call('GET', 'ks:clock') or time[1] + time[2] / 1e6)
end

-- Adds an event to the job's log and notifies its readers.
local function add_event(id, kind, data)
  redis.call('RPUSH', 'ks:job:' .. id .. ':log', kind .. ' ' .. data)
  redis.call('PUBLISH', 'ks:events', id .. ' ' .. kind)
end

-- Sets how much of a slice's running items is done, as a number of items. The fraction of the whole job that is done is
-- stored as a running maximum, so it never decreases.
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

-- Stores the latest progress. Readers are notified at most five times a second.
local function report_progress(id, slice, data)
  local job, time = 'ks:job:' .. id, redis.call('TIME')
  local at = time[1] * 1000 + math.floor(time[2] / 1000)
  work_done(slice, cjson.decode(data).share or 0)
  redis.call('HSET', job, 'progress', data)
  if at - (redis.call('HGET', job, 'told_at') or 0) < 200 then return end
  redis.call('HSET', job, 'told_at', at, 'told_place', redis.call('LLEN', job .. ':log'))
  redis.call('HINCRBY', job, 'told', 1)
  redis.call('PUBLISH', 'ks:events', id .. ' progress')
end

-- Common to every end of a slice.
local function slice_done(slice, owner)
  redis.call('ZREM', 'ks:leases', slice)
  redis.call('ZREM', 'ks:deadlines', slice)
  redis.call('SREM', 'ks:open:' .. (owner or ''), slice)
  work_done('ks:slice:' .. slice, 0)
end

-- Schedules the webhook. Its message is self-contained, as it may be sent after the record is gone (shared/webhooks.py).
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
  add_event(id, 'status', status)
end

-- Deletes a job from Redis, except from its owner's list.
local function delete_job(id, slices)
  local job = 'ks:job:' .. id
  for number = 0, (tonumber(slices) or 0) - 1 do redis.call('DEL', 'ks:slice:' .. id .. ':' .. number) end
  for _, part in ipairs({'', ':results', ':log', ':webhook', ':drawn', ':blobs', ':images', ':events'}) do
    redis.call('DEL', job .. part)
  end
  redis.call('ZREM', 'ks:finished', id)
  redis.call('ZREM', 'ks:expiry', id)
end
