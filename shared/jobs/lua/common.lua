-- Put before each of the other scripts: what a reader of the job's events is told, and the end of a slice and of a job.

-- An event that stays with the job, and word to whoever waits for it.
local function tell(id, kind, data)
  local event = redis.call('XADD', 'ks:job:' .. id .. ':events', '*', 'kind', kind, 'data', data)
  redis.call('PUBLISH', 'ks:events', id .. ' ' .. kind)
  return event
end

-- Only the latest progress stays, and there are at most four a second.
local function tell_progress(id, data)
  local job = 'ks:job:' .. id
  local last = redis.call('HGET', job, 'progress_event')
  if last then
    local now = redis.call('TIME')
    local since = now[1] * 1000 + now[2] / 1000 - string.match(last, '%d+')
    if since < 200 then return end
    redis.call('XDEL', job .. ':events', last)
  end
  redis.call('HSET', job, 'progress_event', tell(id, 'progress', data))
end

-- What every end of a slice does, however it came.
local function slice_done(slice, owner)
  redis.call('ZREM', 'ks:leases', slice)
  redis.call('ZREM', 'ks:deadlines', slice)
  redis.call('SREM', 'ks:open:' .. (owner or ''), slice)
end

local function job_ended(id, status, now)
  local job = 'ks:job:' .. id
  redis.call('HSET', job, 'status', status, 'finished_at', now)
  redis.call('HDEL', job, 'progress')
  redis.call('HINCRBY', 'ks:ended', status, 1)
  if (redis.call('HGET', job, 'webhook') or '') ~= '' then redis.call('ZADD', 'ks:webhooks', now, id) end
  tell(id, 'status', status)
end

