-- Takes due webhooks. Callers take turns, and there is a limit on concurrent attempts for a caller and for a receiver.
-- Due messages are moved from the schedule to the queue of their caller and receiver; those that are taken are scheduled
-- again for later, so that they are retried if the process that took them dies.
-- ARGV: now, number of messages to take, time when those taken are due again, limit for one caller, limit for one receiver,
-- JSON {"owners": {name: concurrent attempts}, "hosts": {…}}.
-- Returns id, message, host of each message that is taken.
local MOVED = 1000 -- most messages that are moved to their queues in one call
local SAMPLED = 16 -- receivers of one caller that are considered, chosen at random, as there may be many
local now, free, busy = tonumber(ARGV[1]), tonumber(ARGV[2]), cjson.decode(ARGV[6])

-- The message of a job. For messages of earlier versions, which did not store any, it is made from the job's record.
local function message_of(id)
  local text = redis.call('HGET', 'ks:webhooks:messages', id)
  if text then return cjson.decode(text) end
  local job = redis.call('HMGET', 'ks:job:' .. id, 'webhook', 'owner', 'traceparent', 'status', 'finished_at')
  if (job[1] or '') == '' or not job[5] then return nil end
  local tries = redis.call('LLEN', 'ks:job:' .. id .. ':webhook')
  return {url = job[1], owner = job[2] or '', traceparent = job[3] or '', status = job[4], at = job[5], tries = tries}
end

local due = redis.call('ZRANGEBYSCORE', 'ks:webhooks', '-inf', now, 'WITHSCORES', 'LIMIT', 0, MOVED)
for at = 1, #due, 2 do
  local id, message = due[at], message_of(due[at])
  if message then
    local host = string.lower(string.match(message.url, '^%a+://([^/?#]*)') or '')
    message.line = 'ks:webhooks:line:' .. message.owner .. ' ' .. host
    redis.call('HSET', 'ks:webhooks:messages', id, cjson.encode(message))
    redis.call('ZADD', message.line, due[at + 1], id)
    redis.call('SADD', 'ks:webhooks:hosts:' .. message.owner, host)
    redis.call('SADD', 'ks:webhooks:owners', message.owner)
  end
  redis.call('ZREM', 'ks:webhooks', id)
end

-- Reads the first message of a queue; deletes the receiver if the queue is empty.
local function peek(line)
  local first = redis.call('ZRANGE', line.key, 0, 0, 'WITHSCORES')
  line.id, line.since = first[1], tonumber(first[2] or 0)
  if not line.id then redis.call('SREM', 'ks:webhooks:hosts:' .. line.owner, line.host) end
end

local lines = {}
for _, owner in ipairs(redis.call('SMEMBERS', 'ks:webhooks:owners')) do
  local hosts = redis.call('SRANDMEMBER', 'ks:webhooks:hosts:' .. owner, SAMPLED)
  if #hosts == 0 then redis.call('SREM', 'ks:webhooks:owners', owner) end
  for _, host in ipairs(hosts) do
    local line = {owner = owner, host = host, key = 'ks:webhooks:line:' .. owner .. ' ' .. host}
    peek(line)
    lines[#lines + 1] = line
  end
end

local taken = {}
while free > 0 do
  local best, least
  for _, line in ipairs(lines) do
    local of_owner, of_host = busy.owners[line.owner] or 0, busy.hosts[line.host] or 0
    if line.id and of_owner < tonumber(ARGV[4]) and of_host < tonumber(ARGV[5]) then
      if not best or of_owner < least or (of_owner == least and line.since < best.since) then
        best, least = line, of_owner
      end
    end
  end
  if not best then break end
  redis.call('ZREM', best.key, best.id)
  local text = redis.call('HGET', 'ks:webhooks:messages', best.id)
  if text then -- otherwise it has been delivered in the meantime
    redis.call('ZADD', 'ks:webhooks', ARGV[3], best.id)
    for _, each in ipairs({best.id, text, best.host}) do taken[#taken + 1] = each end
    busy.owners[best.owner] = least + 1
    busy.hosts[best.host] = (busy.hosts[best.host] or 0) + 1
    free = free - 1
  end
  peek(best)
end
return taken
